"""Placeholders beside private spans: which there are, and the values put back into answers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from client_lib.prompts.answers import MOST_ANSWERS, AnswerMemory, Change
from client_lib.prompts.chat import Message
from client_lib.prompts.detect import Finding, detected
from client_lib.prompts.spans import Span
from client_lib.prompts.surrogates import Surrogates

ANN, BEN = "ann@example.org", "ben@example.net"


def shown(spans: Sequence[Span]) -> str:
    """Return the public text, with a dot for each private span."""
    return "".join("·" if span.is_private else span.text for span in spans)


def known(*values: str) -> Surrogates:
    """Return placeholders [VALUE_1], [VALUE_2] and so on of some values."""
    surrogates = Surrogates()
    for value in values:
        surrogates.marked(value, [Finding(0, len(value), "value")])
    return surrogates


def test_a_placeholder_stands_before_what_is_found() -> None:
    surrogates = Surrogates()
    spans = surrogates.spans(f"From {ANN} to {BEN}, and call 030 901 8200!")
    assert shown(spans) == "From [EMAIL_1] · to [EMAIL_2] ·, and call [PHONE_1] ·!"
    assert [span.text for span in spans if span.is_private] == [ANN, BEN, "030 901 8200"]
    assert shown(Surrogates().spans("Nothing to hide.")) == "Nothing to hide."
    assert Surrogates().spans("") == ()


def test_the_same_value_has_the_same_placeholder_and_one_drawing() -> None:
    surrogates = Surrogates()
    assert shown(surrogates.spans(f"{ANN} or {ANN}")) == "[EMAIL_1] · or [EMAIL_1]"
    assert shown(surrogates.spans(f"{BEN}, not {ANN}")) == "[EMAIL_2] ·, not [EMAIL_1]"
    assert surrogates.restore("[EMAIL_2]") == BEN
    # In capitals it is another value: its own letters are put back.
    assert shown(surrogates.spans(ANN.upper())) == "[EMAIL_3] ·"


def test_numbers_that_the_text_has_used_belong_to_no_value() -> None:
    surrogates = Surrogates()
    surrogates.public("As [email_1] says")
    assert shown(surrogates.spans(f"[EMAIL_2] is {ANN}")) == "[EMAIL_2] is [EMAIL_3] ·"
    # What is written later changes nothing for the values before.
    assert shown(surrogates.spans(f"[EMAIL_4] or {ANN} or {BEN}")) == "[EMAIL_4] or [EMAIL_3] or [EMAIL_5] ·"
    assert surrogates.restore("[EMAIL_1] [EMAIL_2] [EMAIL_4]") == "[EMAIL_1] [EMAIL_2] [EMAIL_4]"


def test_kinds_of_other_detectors_become_names() -> None:
    text = "Zoë lives on Elm Street"
    found = [Finding(0, 3, "first name"), Finding(13, 21, "straße"), Finding(3, 4, "space")]
    marked = Surrogates().marked(text, [found[0], found[2], found[1]])
    assert shown(marked) == "[FIRST_NAME_1] · lives on [STRASSE_1] ·et"
    assert shown(Surrogates().marked("x", [Finding(0, 1, "名")])) == "[VALUE_1] ·"


def test_white_space_at_the_ends_of_a_finding_stays_outside() -> None:
    (before, value, after) = Surrogates().marked("a  Ann \nb", [Finding(1, 8, "name")])
    assert (before.text, value.text, after.text) == ("a  [NAME_1] ", "Ann", " \nb")


@given(st.text(alphabet="ab@.1 \n[]_EMAIL") | st.text())
def test_what_is_found_is_private_or_a_placeholder_and_the_rest_stays(text: str) -> None:
    surrogates = Surrogates()
    spans = surrogates.spans(text)
    private = [span.text for span in spans if span.is_private]
    assert private == list(dict.fromkeys(span.text.strip() for span in detected(text) if span.is_private))
    # The space before a private span is the placeholder's.
    public = [
        span.text[:-1] if following is not None and following.is_private else span.text
        for span, following in zip(spans, [*spans[1:], None], strict=False)
        if not span.is_private
    ]
    assert surrogates.restore("".join(public)) == text


def test_answers_get_the_values_back() -> None:
    surrogates = Surrogates()
    surrogates.spans(f"{ANN} and {BEN}")
    assert surrogates.restore("To [EMAIL_2], cc [Email_1].") == f"To {BEN}, cc {ANN}."
    for text in ("[EMAIL_12]", "EMAIL_1", "[EMAIL_1", "[ EMAIL_1]", "[EMAIL_1 ]", "[NAME_1]", "[EMAİL_1]", ""):
        assert surrogates.restore(text) == text
    assert surrogates.restore("[[EMAIL_1]]") == f"[{ANN}]"


def test_values_in_json_are_escaped() -> None:
    surrogates = known('"Ann \\ B"\n')
    assert json.loads(surrogates.restore('{"to": "[VALUE_1]"}', as_json=True)) == {"to": '"Ann \\ B"'}
    text, changes = surrogates.restored('[VALUE_1] {"to": "[value_1]"}', json_from=10)
    assert text == '"Ann \\ B" {"to": "\\"Ann \\\\ B\\""}'
    assert changes == (Change(0, 9, "[VALUE_1]"), Change(18, 30, "[value_1]"))


def test_values_are_not_searched_for_placeholders() -> None:
    surrogates = known("see [VALUE_3]", "[VALUE_1]")
    assert surrogates.restore("[VALUE_1], [VALUE_2]") == "see [VALUE_3], [VALUE_1]"


VALUES = ("ann", "[", "VALUE_1]", 'b"\\', "")
PIECES = st.lists(
    st.sampled_from(["[VALUE_1]", "[VALUE_", "1", "2", "3]", "]", "[", "[[", "value_2]", "[value_1]", "x", " ", "é"])
    | st.text(max_size=4)
)


@given(PIECES, st.booleans())
@example(["[", "VALUE_1", "]"], False)
@example(["[VALUE_1", "[VALUE_1]"], True)
def test_streams_give_what_the_whole_gives_and_hold_only_beginnings(pieces: list[str], as_json: bool) -> None:
    surrogates = known(*filter(None, VALUES))
    stream, placeholders = surrogates.stream(as_json=as_json), [f"[value_{number}]" for number in range(1, 6)]
    text = seen = ""
    for piece in pieces:
        text, seen = text + piece, seen + stream.feed(piece)
        held = next((text[at:] for at in range(len(text)) if _begins(text[at:], placeholders)), "")
        assert seen == surrogates.restore(text[: len(text) - len(held)], as_json=as_json)
    assert seen + stream.finish() == surrogates.restore(text, as_json=as_json)


def _begins(text: str, placeholders: list[str]) -> bool:
    return text.isascii() and any(one.startswith(text.lower()) and one != text.lower() for one in placeholders)


@given(st.text(alphabet="[VALUE_12] \nx"))
def test_what_the_server_wrote_comes_back_to_it(text: str) -> None:
    """Whatever this machine has put into its answer, and a value that it wrote itself."""
    surrogates, answers = known("ann x", 'b"\\'), AnswerMemory()
    turn = answers.turns(None, "open", [Message("user", "hi")])[-1]
    for written in (text, text + "ann x"):
        restored, changes = surrogates.restored(written)
        answers.note(turn, restored, changes)
        assert answers.own(turn, Message("assistant", restored)) == written
        spaced = answers.own(turn, Message("assistant", f"\n {restored} "))
        assert spaced == (written.strip() if restored.strip() == restored else spaced)
        assert spaced is not None
    assert answers.own(turn, Message("assistant", surrogates.restore(text) + "!")) is None


def test_answers_and_their_changes_are_bounded() -> None:
    answers = AnswerMemory()
    turn = answers.turns(None, "open", [Message("user", "hi")])[-1]
    changes = tuple(Change(at, at + 1, "[X_1]") for at in range(MOST_ANSWERS // 4))
    for number in range(20):
        answers.note(turn, f"{number:02}" * MOST_ANSWERS, changes)
    assert 2 <= len(answers.noted) <= 8
    assert answers.own(turn, Message("assistant", "19" * MOST_ANSWERS)) is not None
    answers.note(turn, "x" * 9 * MOST_ANSWERS, changes * 9)  # more than there is room for
    assert answers.noted == ()


def test_nothing_shows_the_values() -> None:
    surrogates = known("ann")
    assert "ann" not in repr([surrogates, surrogates.stream(), Change(0, 3, "[ann]")])


def test_long_texts_take_little_time() -> None:
    surrogates, text = known(*(f"v{number}" for number in range(3000))), "[VALUE_" * 60_000
    began = time.process_time()
    stream = surrogates.stream()
    pieces = [stream.feed(text[at : at + 7]) for at in range(0, len(text), 7)]
    assert "".join(pieces) + stream.finish() == surrogates.restore(text) == text
    assert time.process_time() - began < 20
