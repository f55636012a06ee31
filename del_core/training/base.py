"""A small Llama and its byte-level BPE tokenizer, with which the demo runs without a download."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from del_core.lm.device import check_device, products
from del_core.lm.text import TokenWindows, split_text, tokenize
from del_core.training.loop import Run, Schedule, fit

_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class BaseConfig:
    """Sizes and schedule of the small LM."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 4
    feed_forward: int = 704
    context: int = 256
    batch: int = 16
    steps: int = 2000
    learning_rate: float = 1.5e-3
    seed: int = 0
    compile: bool = False  # torch.compile: 1.3 times faster on a CPU, needs a C++ compiler
    bf16: bool = False  # matrix products in bfloat16: 1.5 times faster with AVX512-BF16


def _train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # BPE merges are learned from lines, which bounds the trainer's memory.
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return tokenizer


def train_base(
    texts: Sequence[str],
    output: Path,
    config: BaseConfig | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> float:
    """Train tokenizer and LM on the training part of ``texts``; return the validation perplexity.

    ``output`` becomes a Hugging Face model directory in fp16. An interrupted run resumes from
    ``output/checkpoints``. DeviceError is raised if there is no such device.
    """
    check_device(device)
    config = config or BaseConfig()
    torch.manual_seed(config.seed)
    splits = split_text(texts)
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    tokenizer_path = checkpoints / "tokenizer.json"
    if tokenizer_path.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer = _train_tokenizer(splits.train, config.vocabulary)
        tokenizer.save(str(tokenizer_path))
    end = tokenizer.token_to_id(_END_OF_TEXT)
    train = TokenWindows(tokenize(tokenizer, splits.train, end).to(device), config.context + 1, config.seed)
    validation = TokenWindows(tokenize(tokenizer, splits.validation, end), config.context + 1, config.seed)
    held_out = validation.first(64).to(device)

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.feed_forward,
            # Room for a soft prompt, a prompt and its continuation.
            max_position_embeddings=4 * config.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
            attn_implementation="sdpa",
        )
    ).to(device)

    forward = torch.compile(model) if config.compile else model

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with products(device, config.bf16):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def evaluate() -> float:
        return sum(float(loss_of(part)) * len(part) for part in held_out.split(16)) / len(held_out)

    identity = {key: value for key, value in asdict(config).items() if key not in ("steps", "compile")}
    fit(
        model.named_parameters(),
        lambda step: loss_of(train.batch(step, config.batch)),
        Run(
            "base",
            checkpoints,
            Schedule(config.steps, config.learning_rate, warmup=min(100, config.steps // 10 + 1)),
            identity={**identity, "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()},
            checkpoint_every=200,  # each holds the model four times
            weight_decay=0.1,
            progress=progress,
        ),
        evaluate,
    )
    model.half().float()
    perplexity = math.exp(evaluate())
    model.half().save_pretrained(output)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END_OF_TEXT, pad_token=_END_OF_TEXT).save_pretrained(
        output
    )
    return perplexity
