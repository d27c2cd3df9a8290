"""Small models that find the shares of a mixture: the run's parts in other sizes, trained on rows of its sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ablatio.data.batches import TrainBatches, batch_of
from ablatio.data.corpus import Corpus
from ablatio.data.types import Tokenizer
from ablatio.model.build import build_model
from ablatio.model.example import Example
from ablatio.model.language_model import loss_of
from ablatio.model.parameter_roles import named_generator
from ablatio.training.evaluate import evaluate

HELD_OUT = 8192  # held-out tokens of a source that a proxy is scored on
WARM_UP = 0.1


class Rows(Protocol):
    """Rows of a run's sources: the methods of DataStreams that proxies call."""

    setup: Any
    corpora: dict[str, Corpus]
    tokenizer: Tokenizer

    @property
    def names(self) -> list[str]:
        """Names of the sources, in order."""

    def stream(self, corpus: Corpus) -> TrainBatches:
        """The training rows of one source."""

    def validation(self, length: int | None = None, tokens: int | None = None) -> Any:
        """The held-out rows."""


class Proxies:
    """Makes proxy models for a mixture; they are trained on this machine's CPU, before the run."""

    def __init__(self, data: Rows) -> None:
        self.data = data

    @property
    def names(self) -> list[str]:
        """Names of the sources, in order."""
        return self.data.names

    def start(self, *, width: int, layers: int, steps: int, lr: float, seed: int) -> Proxy:
        """Return a new model of `layers` layers of `width`, for a training of `steps` steps."""
        return Proxy(self.data, width, layers, steps, lr, seed)


class Proxy:
    """A model and its optimizer, AdamW with a linear warm-up and decay.

    Its rows, weights and results depend on its arguments alone.
    """

    def __init__(self, data: Rows, width: int, layers: int, steps: int, lr: float, seed: int) -> None:
        self.data, self.steps, self.lr, self.seed = data, steps, lr, seed
        setup, tokenizer = data.setup, data.tokenizer
        config = _resized(setup.config, width, layers)
        self.model = build_model(config, tokenizer.vocab_size, tokenizer.eos, seed)
        wiring = {"vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos, "max_len": setup.length}
        self.objective = setup.part("objective", **wiring)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.streams = {name: data.stream(corpus) for name, corpus in data.corpora.items()}
        self.taken = dict.fromkeys(data.names, 0)  # rows so far

    def rows(self, name: str, count: int) -> Example:
        """The next rows of a source, in the order of the run's data seed."""
        stream, length = self.streams[name], self.data.setup.length
        first = self.taken[name]
        self.taken[name] += count
        tokens = stream.gather(torch.arange(first, first + count).numpy(), length)
        batch = batch_of(tokens, stream.eos, stream.document_mask)
        generator = named_generator(self.seed, f"proxy/{name}/{first}")
        made: Example = self.objective(batch["tokens"], batch.get("segments"), generator)
        return made

    def loss(self, example: Example) -> Tensor:
        """Mean loss of rows in nats per target, with its graph."""
        total, weight, _ = loss_of(self.objective, self.model.train(), example)
        return total / weight

    def token_losses(self, example: Example) -> Tensor:
        """Loss of each target in nats: (B, T), without a graph."""
        with torch.no_grad():
            return self.model.eval().token_losses(example)

    def update(self, loss: Tensor, step: int) -> None:
        """Take optimizer step number `step`, from 0, along the gradient of a loss."""
        warm, left = (step + 1) / max(1, WARM_UP * self.steps), (self.steps - step) / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, warm, left / (1 - WARM_UP))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def train(self, shares: Mapping[str, float], batch: int) -> Proxy:
        """Train on rows of the sources, `batch` per step, each weighted by the share of its source."""
        used = {name: share for name, share in shares.items() if share > 0}
        rows = max(1, batch // len(used))
        for step in range(self.steps):
            losses = [share * self.loss(self.rows(name, rows)) for name, share in used.items()]
            self.update(torch.stack(losses).sum(), step)
        return self

    def held_out(self) -> dict[str, float]:
        """Loss of the held-out rows of each source, in nats per token."""
        parts: Any = self.data.validation(tokens=HELD_OUT * len(self.data.names)).parts
        sizes, device = self.data.tokenizer.token_bytes(), torch.device("cpu")
        return {
            name: evaluate(self.model, self.objective, (part[i] for i in range(len(part))), sizes, device).loss
            for name, part in parts.items()
        }


def _resized(config: Mapping[str, Any], width: int, layers: int) -> dict[str, Any]:
    """The config with a model of other sizes, from scratch and without dropout."""
    heads = next(n for n in (int(config["model"]["n_heads"]), 4, 2, 1) if width % n == 0 and width // n % 2 == 0)
    sizes = {"d_model": width, "n_layers": layers, "n_heads": heads, "d_head": None, "d_ff": None}
    fixed = {"start": "scratch", "path": None, "dropout": 0.0, "distinct_layers": None, "encoder_layers": None}
    return {**config, "model": {**config["model"], **sizes, **fixed}}
