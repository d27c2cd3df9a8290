"""Parts that load but violate one rule of their kind's contract each: `ablatio check` must find all of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from ablatio import (
    Positive,
    activations,
    inits,
    mlps,
    norms,
    objectives,
    optimizers,
    positions,
    schedules,
    sources,
    stabilizers,
    tokenizers,
)
from ablatio.data.types import Document
from ablatio.model.example import Example
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks

PAPER = "doi:10.0/0"


class _Norm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


@norms.register("narrow", paper=PAPER)
class Narrow(_Norm):
    """Returns one feature too few."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :-1]


@norms.register("scribbler", paper=PAPER)
class Scribbler(_Norm):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x += 1
        return super().forward(x)


@norms.register("deadknob", paper=PAPER)
class DeadKnob(_Norm):
    """Has a knob without effect."""

    def __init__(self, d_model: int, *, strength: Annotated[float, Positive] = 1.0) -> None:
        super().__init__(d_model)


@norms.register("seeder", paper=PAPER)
class Seeder(_Norm):
    """Seeds torch's global random state."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        torch.manual_seed(0)


@norms.register("mixer", paper=PAPER)
class Mixer(_Norm):
    """Takes the mean over all positions, future ones included."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x.mean(-2, keepdim=True) if x.dim() > 1 else x)


@norms.register("fragile", paper=PAPER)
class Fragile(_Norm):
    """Divides by zero where the input is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.square().mean(-1, keepdim=True).sqrt()


@norms.register("silent", paper=PAPER)
class Silent(_Norm):
    """"""


@activations.register("wrong_slope", paper=PAPER)
class WrongSlope(nn.Module):
    """max(0, x), with a gradient that is half of its own."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        y = x.relu()
        return y.detach() + (y - y.detach()) * 0.5


@positions.register("unbuffered", paper=PAPER)
class Unbuffered(nn.Module):
    """Holds a tensor that is not a buffer and so does not move with the model."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.slopes = -torch.arange(1.0, n_heads + 1)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return self.slopes[:, None, None] * (q_pos[..., :, None] - k_pos[..., None, :]).abs().unsqueeze(-3)


@mlps.register("lookahead", paper=PAPER)
class LookAhead(nn.Module):
    """Each token gets the next one's features."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, ctx: Any) -> Tensor:
        return self.up_proj(x.roll(-1, dims=1))


@inits.register("deaf", paper=PAPER)
def deaf(weight: Tensor, info: Any, generator: torch.Generator) -> None:
    """N(0, 0.02^2) from torch's global random state instead of the generator."""
    weight.normal_(0, 0.02)


@objectives.register("eraser", paper=PAPER)
class Eraser:
    """Next token; writes into the shared batch."""

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        tokens[:, 0] = 1
        return Example(tokens[:, :-1], tokens[:, 1:], segments=None if segments is None else segments[:, :-1])


class _Forgetful(torch.optim.SGD):
    def __init__(self, groups: Any) -> None:
        super().__init__(groups, lr=0.1)
        self.calls = 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=group["lr"] / self.calls)


@optimizers.register("forgetful", paper=PAPER)
def forgetful(groups: list[Any]) -> torch.optim.Optimizer:
    """w <- w - lr g / k, where the step count k is missing from the state."""
    return _Forgetful(groups)


@schedules.register("doubling", paper=PAPER)
def doubling(step: int, total: int) -> float:
    """Ends at twice the peak."""
    return 2 * step / max(1, total - 1)


@stabilizers.register("chatty", paper=PAPER)
class Chatty:
    """Returns a metric that it does not declare."""

    def after_step(self, step: Any) -> dict[str, Tensor]:
        return {"train/surprise": torch.tensor(1.0)}


@tasks.register("restless", paper=PAPER)
class Restless(Task):
    """Draws batches sequentially, independent of the requested number."""

    def __init__(self, setup: Any) -> None:
        self.setup, self.generator = setup, torch.Generator().manual_seed(0)
        self.tokenizer, self.content = setup.tokenizer(setup.source()), {"fingerprint": ""}
        self.training = self

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rows = torch.randint(0, 256, (2, 9), generator=self.generator)
        return {"tokens": rows, "number": torch.tensor(number)}

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        return [{"tokens": torch.ones(1, 9, dtype=torch.long)}]

    def tokens(self, steps: int) -> int:
        return 16 * steps

    def example(self, batch: dict[str, Tensor], generator: torch.Generator) -> Example:
        return Example(batch["tokens"][:, :-1], batch["tokens"][:, 1:])

    def loss(self, model: Any, example: Example) -> Any:
        return model.loss(example)

    def score(self, model: Any, batches: Any, device: Any, between: Any) -> dict[str, float]:
        between(1)
        return {"loss": float(model.token_losses(self.example(batches[0], self.generator)).mean())}


@sources.register("stutter")
class Stutter:
    """Yields two documents with the same id."""

    def documents(self) -> Iterator[Document]:
        yield from (Document("one", "same"), Document("two", "same"))

    def fingerprint(self) -> str:
        return "stutter"


@tokenizers.register("shouting")
class Shouting:
    """UTF-8 of the text in capitals."""

    trained = False
    vocab_size, eos = 257, 256

    def train(self, texts: Iterable[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> list[Any]:
        return [np.frombuffer(text.upper().encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    def token_bytes(self) -> Any:
        return np.array([1] * 256 + [0])

    def state(self) -> str:
        return "{}"

    def restore(self, state: str) -> None: ...
