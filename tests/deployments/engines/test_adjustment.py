"""Penalties, biases and grammars of completions, against their definitions."""

from __future__ import annotations

import json
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


def test_a_model_without_end_of_text_has_no_structures(tiny: Tiny) -> None:
    with pytest.raises(FrameError, match="no end of text"):
        Grammars(Path(tiny.model / "tokenizer.json"), ()).grammar(StructuredOutputs(json_object=True))
