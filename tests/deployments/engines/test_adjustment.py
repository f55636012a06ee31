"""Penalties, biases and grammars of completions, against their definitions."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from del_core.errors import FrameError
from del_core.wire import StructuredOutputs
from deployments.engines.base import Adjustment, Grammar
from deployments.engines.vllm.adjustment import AdjustedLogits, adjustment_args
from deployments.service.structure import Grammars
from tests.support.tiny import EOS_ID, VOCABULARY_SIZE, Tiny

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a/b", "\u00fc"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def processor(adjustment: Adjustment | None, output: list[int]) -> AdjustedLogits:
    made = AdjustedLogits(None, torch.device("cpu"), False)
    # As after the way to the engine's process, where tuples become lists.
    arguments = json.loads(json.dumps(adjustment_args(adjustment)))
    parameters = SamplingParams(extra_args=arguments or None)
    made.update_state(BatchUpdate(1, removed=[], added=[(0, parameters, None, output)], moved=[]))
    return made


@pytest.mark.parametrize("penalty", [1e-300, 5e-324, 1e-38, 1e-45])
def test_the_smallest_penalty_leaves_probabilities(penalty: float) -> None:
    """It is above 0, as the wire format asks, and 0 in the type of the logits."""
    logits = torch.tensor([[3.0, 0.0, -2.0, 1.0]])
    adjusted = processor(Adjustment(penalty, resumed=(0, 1, 2)), []).apply(logits)
    assert torch.isfinite(adjusted).all()
    assert torch.softmax(adjusted, dim=-1).tolist() == [[1.0, 0.0, 0.0, 0.0]]


_penalty = st.floats(-2, 2, width=32)


@settings(deadline=None)
@given(
    st.floats(0.125, 2, width=32),
    _penalty,
    _penalty,
    st.dictionaries(st.integers(0, 7), st.floats(-100, 100, width=32), max_size=4),
    st.lists(st.integers(0, 7), max_size=8),
    st.integers(0, 8),
)
def test_logits_follow_the_definition_also_when_resumed(
    repetition: float, frequency: float, presence: float, bias: dict[int, float], tokens: list[int], cut: int
) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -1.5, 1.5, 0.25])
    expected = logits.double().numpy().copy()
    for token, count in Counter(tokens).items():
        expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        expected[token] -= frequency * count + presence
    for token, value in bias.items():
        expected[token] += value
    resumed, output = tuple(tokens[:cut]), tokens[cut:]
    adjustment = Adjustment(repetition, frequency, presence, tuple(bias.items()), resumed=resumed)
    given_output: list[int] = []
    made = processor(adjustment, given_output)
    for token in output:  # the engine appends to the list that it gave
        made.apply(logits.clone()[None])
        given_output.append(token)
    found = made.apply(logits.clone()[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_other_requests_keep_their_logits_bit_by_bit() -> None:
    logits = torch.randn(1, 8)
    assert torch.equal(processor(None, [1, 2]).apply(logits.clone()), logits)


def grammars(tiny: Tiny) -> Grammars:
    return Grammars(tiny.model / "tokenizer.json", (EOS_ID,))


def generate(grammar: Grammar, generator: torch.Generator, *, cut: int = 0, resumed: tuple[int, ...] = ()) -> list[int]:
    """Return tokens of random logits, up to the end of text or ``cut`` tokens."""
    output: list[int] = []
    made = processor(Adjustment(grammar=grammar, resumed=resumed), output)
    while len(output) < (cut or 400):
        logits = made.apply(torch.randn(1, VOCABULARY_SIZE, generator=generator))[0]
        token = int(torch.softmax(logits, -1).multinomial(1, generator=generator))
        output.append(token)
        if token == EOS_ID:
            break
    return output


@pytest.mark.parametrize("seed", range(8))
def test_random_logits_give_what_the_structure_asks_for(tiny: Tiny, seed: int) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.model / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    schema = grammars(tiny).grammar(StructuredOutputs(json=json.dumps(SCHEMA)))
    begun = generate(schema, generator, cut=5)
    rest = generate(schema, generator, resumed=tuple(begun))  # another replica continues
    assert rest[-1] == EOS_ID
    jsonschema.validate(json.loads(tokenizer.decode(begun + rest[:-1])), SCHEMA)
    choice = grammars(tiny).grammar(StructuredOutputs(choice=("a/b", "(x)", "yes.", "\u00fc 1")))
    tokens = generate(choice, generator)
    assert tokens[-1] == EOS_ID
    assert tokenizer.decode(tokens[:-1]) in ("a/b", "(x)", "yes.", "\u00fc 1")


@pytest.mark.parametrize("seed", range(4))
def test_white_space_does_not_go_on_without_end(tiny: Tiny, seed: int) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.model / "tokenizer.json"))
    numbers = {"type": "array", "items": {"enum": [1, 20]}, "maxItems": 3}
    schema = {"type": "object", "properties": {"a": numbers, "b": numbers}, "additionalProperties": False}
    grammar = grammars(tiny).grammar(StructuredOutputs(json=json.dumps(schema)))
    tokens = generate(grammar, torch.Generator().manual_seed(seed))
    text = tokenizer.decode(tokens[:-1])
    jsonschema.validate(json.loads(text), schema)
    assert re.fullmatch(r"([^\s]|(?<=[,:]) )*", text)


def test_a_completed_structure_only_ends(tiny: Tiny) -> None:
    tokenizer = Tokenizer.from_file(str(tiny.model / "tokenizer.json"))
    grammar = grammars(tiny).grammar(StructuredOutputs(regex="ab"))
    output = list(tokenizer.encode("ab", add_special_tokens=False).ids)
    left = processor(Adjustment(grammar=grammar), output).apply(torch.zeros(1, VOCABULARY_SIZE))[0]
    assert torch.isfinite(left).nonzero().ravel().tolist() == [EOS_ID]


@pytest.mark.parametrize(
    ("structure", "name"),
    [
        (StructuredOutputs(json="{"), "json"),
        (StructuredOutputs(json="[]"), "json"),
        (StructuredOutputs(json='{"type": "secret"}'), "json"),
        (StructuredOutputs(json='{"$ref": "https://secret.example/x"}'), "json"),
        (StructuredOutputs(json="[" * 5000), "json"),
        (StructuredOutputs(json='{"items": ' * 400 + "true" + "}" * 400), "json"),
        (StructuredOutputs(regex="(secret"), "regex"),
    ],
)
def test_structures_that_are_none_are_refused_without_their_text(
    tiny: Tiny, structure: StructuredOutputs, name: str
) -> None:
    with pytest.raises(FrameError, match="the library llguidance accepts") as refusal:
        grammars(tiny).grammar(structure)
    assert refusal.value.field == f"header.structured_outputs.{name}"
    assert "secret" not in str(refusal.value)


ARRAY = {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    "schema",
    [
        {**ARRAY, "minItems": 10**9},
        {**ARRAY, "maxItems": 10**9},
        {**ARRAY, "minItems": 1e300},
        {"anyOf": [{**ARRAY, "minItems": 1000 + extra} for extra in range(3)]},
        {"$defs": {"a": {**ARRAY, "maxItems": 2001}}, "$ref": "#/$defs/a"},
    ],
    ids=str,
)
def test_arrays_that_would_take_all_memory_are_refused(tiny: Tiny, schema: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="minItems and maxItems of at most 2000 in all"):
        grammars(tiny).grammar(StructuredOutputs(json=json.dumps(schema)))


def test_members_that_only_look_like_bounds_are_none(tiny: Tiny) -> None:
    allowed = {"properties": {"minItems": {"enum": [{"minItems": 10**9}]}}, "type": "object"}
    assert grammars(tiny).grammar(StructuredOutputs(json=json.dumps(allowed)))


@pytest.mark.parametrize(
    "structure",
    [
        StructuredOutputs(regex="((((a{50}){50}){50}){50}){50}"),
        StructuredOutputs(regex="(a{1000}){1000}"),
        StructuredOutputs(regex="(a|b|ab)*" * 2000),
        StructuredOutputs(json=json.dumps({"type": "string", "pattern": "^(a{500}){500}$"})),
    ],
    ids=lambda structure: str(structure.regex or structure.json)[:30],
)
def test_expressions_that_would_hold_up_the_engine_are_bounded(tiny: Tiny, structure: StructuredOutputs) -> None:
    """They are refused, or every step of them is quick."""
    try:
        grammar = grammars(tiny).grammar(structure)
    except FrameError:
        return
    began = time.process_time()
    made = processor(Adjustment(grammar=grammar), [])
    made.apply(torch.zeros(1, VOCABULARY_SIZE))
    assert time.process_time() - began < 1.5  # 0.2 s here; with the library's own bounds 2.5 s


def test_a_model_without_end_of_text_has_no_structures(tiny: Tiny) -> None:
    with pytest.raises(FrameError, match="no end of text"):
        Grammars(Path(tiny.model / "tokenizer.json"), ()).grammar(StructuredOutputs(json_object=True))
