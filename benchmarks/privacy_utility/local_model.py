"""Token replacement with a local model that rewrites, as in InferDPT (arXiv 2310.12214).

The server continues the replaced prompt. A small model on the client, which has the clear prompt,
reads the server's text and then the prompt, and writes the continuation. The client needs a model,
which DEL's client does not.
"""

from __future__ import annotations

import copy

import torch

from benchmarks.privacy_utility.baselines import TokenReplacement
from benchmarks.privacy_utility.views import ClientCost, timed
from del_core.bundle import Adapter
from del_core.evaluation.measure import continuations
from del_core.evaluation.view import FloatArray, Recovery, TokenIds, whole_prompt
from del_core.lm.model import BaseLM

__all__ = ["LocalModel", "LocalRewriter"]


class LocalModel:
    """The client's own model with the clear prompt: nothing is sent. A rewriter should be better.

    Args:
        local_model: model with the server's tokenizer.
        written: number of tokens that ``client_cost`` writes.
    """

    name = "local model alone"
    bits_per_token = 0.0

    soft_prompt: torch.Tensor | None = None
    adapter: Adapter | None = None

    def __init__(self, local_model: BaseLM, written: int = 32) -> None:
        self.local_model, self.written = local_model, written

    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the tokens' embeddings in the local model."""
        return self.local_model.embeddings[tokens]

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery of the guess that needs no prompt."""
        return Recovery.from_prior(tokens, log_prior)

    def epsilon(self) -> float | None:
        """Return 0."""
        return 0.0

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure reading and writing on a CPU; count the model's weights and KV cache."""
        return self._cost_of_writing(torch.from_numpy(tokens)[None])

    @torch.no_grad()
    def _cost_of_writing(self, read: torch.Tensor) -> ClientCost:
        client = self.local_model.model
        if client.device.type != "cpu":
            client = copy.deepcopy(client).cpu()
        embedded = self.local_model.begin(self.local_model.embeddings[read.to(self.local_model.embeddings.device)])
        embedded = embedded.to(client.device)
        seconds = timed(lambda: continuations(client, embedded, self.written), repeats=3)
        config = self.local_model.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cached = 2 * config.num_hidden_layers * heads * width * (read.shape[1] + self.written)
        held = sum(p.numel() * p.element_size() for p in self.local_model.model.parameters())
        return ClientCost(seconds, (held + cached * self.local_model.model.dtype.itemsize) / 1e6)


class LocalRewriter(LocalModel):
    """Local model that reads the server's continuation, ``separator``, and the clear prompt.

    Args:
        replaced: view that the server's model reads.
        server: model that writes ``written`` tokens greedily.
        separator: token id between the server's text and the prompt, such as end-of-text.
    """

    name = "token replacement, local model rewrites"

    def __init__(
        self,
        local_model: BaseLM,
        replaced: TokenReplacement,
        server: BaseLM,
        separator: int,
        written: int = 32,
    ) -> None:
        super().__init__(local_model, written)
        self.replaced, self.server, self.separator = replaced, server, separator
        self.bits_per_token = replaced.bits_per_token

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return embeddings of the local model's input, (N, ``written`` + 1 + T, b)."""
        server_text = continuations(
            self.server.model, whole_prompt(self.server, self.replaced, tokens, generator), self.written
        )
        return self.local_model.embeddings[self._context(server_text, tokens)]

    def _context(self, server_text: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        between = torch.full((len(tokens), 1), self.separator, dtype=torch.int64, device=tokens.device)
        return torch.cat([server_text, between, tokens], dim=1)

    def attack(self, tokens: TokenIds, log_prior: FloatArray, seed: int) -> Recovery:
        """Return the recovery from the replacement: nothing else leaves the client."""
        return self.replaced.attack(tokens, log_prior, seed)

    def epsilon(self) -> float | None:
        """Return that of the replacement."""
        return self.replaced.epsilon()

    def client_cost(self, tokens: TokenIds) -> ClientCost:
        """Measure replacing, reading and writing; count embedding table and local model."""
        ids, replacing = torch.from_numpy(tokens)[None], self.replaced.client_cost(tokens)
        # The duration does not depend on the server's text.
        server_text = ids[:, :1].expand(-1, self.written)
        writing = self._cost_of_writing(self._context(server_text, ids))
        return ClientCost(replacing.seconds + writing.seconds, replacing.megabytes + writing.megabytes)
