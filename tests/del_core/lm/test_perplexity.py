"""The likelihood of continuations behind a shared soft prompt, against one pass over everything."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, OPTConfig

from del_core.lm.perplexity import IGNORED, continuation_nll, targets_nll

_SIZES = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_FAMILIES = {
    "llama": LlamaConfig(**_SIZES, **_TOKENS),
    # Windows shorter than the soft prompt, and a cap on the logits.
    "gemma2": Gemma2Config(**_SIZES, **_TOKENS, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, **_TOKENS),  # learned positions
    "opt": OPTConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
        **_TOKENS,
    ),
    "bloom": BloomConfig(vocab_size=90, hidden_size=32, n_layer=2, n_head=4, **_TOKENS),  # positions in the scores
}  # fmt: skip


@pytest.fixture(params=_FAMILIES)
def model(request):
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(_FAMILIES[request.param], attn_implementation="eager")
    return found.eval().requires_grad_(False)


def _at_once(model, soft_prompt, prompt, continuation):
    """Read soft prompt, prompt and continuation in one pass, the soft prompt once for each row."""
    clean = model.get_input_embeddings()(continuation[:, :-1])
    inputs = torch.cat([soft_prompt.expand(len(prompt), -1, -1), prompt, clean], dim=1)
    logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -continuation.shape[1] :]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), continuation, reduction="none").mean(1)


def test_a_shared_soft_prompt_has_the_losses_and_the_gradient_of_one_pass(model):
    generator = torch.Generator().manual_seed(1)
    rows, prompt = torch.randn(6, 32, generator=generator), torch.randn(3, 5, 32, generator=generator)
    continuation = torch.randint(3, 90, (3, 7), generator=generator)
    one, shared = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    expected, found = (
        _at_once(model, one, prompt, continuation),
        continuation_nll(model, prompt, continuation, shared),
    )
    expected.mean().backward()
    found.mean().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    largest = one.grad.abs().max().item()
    assert largest > 0
    torch.testing.assert_close(shared.grad, one.grad, rtol=1e-3, atol=1e-3 * largest)


def test_padding_on_the_right_changes_nothing(model):
    generator = torch.Generator().manual_seed(2)
    prefix = torch.randn(4, 32, generator=generator)
    lengths, judged_from = (9, 6), (5, 3)
    inputs = torch.randn(2, 9, 32, generator=generator)
    targets = torch.randint(3, 90, (2, 9), generator=generator)
    for row, (length, start) in enumerate(zip(lengths, judged_from, strict=True)):
        targets[row, :start] = IGNORED
        targets[row, length:] = IGNORED
    together = targets_nll(model, inputs, targets, prefix)
    for row, length in enumerate(lengths):
        alone = targets_nll(model, inputs[row : row + 1, :length], targets[row : row + 1, :length], prefix)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
