"""What trains and speaks: a stack (or two) and an output head."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.context import EncoderOutput, MaskKind, Record
from ablatio.model.cross_entropy import Tie, linear_cross_entropy, scored_rows, token_scores
from ablatio.model.example import Example, joined
from ablatio.model.kv_cache import KVCache
from ablatio.model.matmul_backend import few_rows
from ablatio.model.stack import Side, Stack

if TYPE_CHECKING:
    from ablatio.model.build import ModelBuilder


NOTHING = 1e-6  # less than any target weighs: a batch in which nothing is scored has the loss 0 and moves nothing


class Loss(NamedTuple):
    """total: sum of the weighted losses in nats plus the layers' own; weight: what to divide by; measures: to log."""

    total: Tensor
    weight: Tensor
    measures: dict[str, Tensor]


class LanguageModel(nn.Module):
    """A decoder alone and its output head (`tied`: the embedding's own matrix).

    opens      whether the source of an example is seen in both directions (a prefix decoder) or read like all else
    eos        the sign between documents, with which a target begins behind its source
    z_loss     weight of log^2 Z in the loss, Z the sum that the softmax divides by (arXiv:2204.02311, section 5)
    bare       layers whose matrix is read beside their `forward`, where nothing attached to them is seen
    shared_prefix   whether texts may go on from a start that was read once: they learn what they would learn as rows
    smoothing  share of the target's probability that is spread over the vocabulary (arXiv:1512.00567, section 7)
    """

    bare = ("lm_head",)

    def __init__(self, builder: "ModelBuilder", mask: MaskKind, *, opens: bool = False, side: Side = "decoder") -> None:
        super().__init__()
        dims = builder.dims
        self.eos = builder.eos
        self.opens, self.logit_scale, self.z_loss, self.smoothing = opens, builder.logit_scale, 0.0, 0.0
        self.model = Stack(builder, mask, side, opens=opens)
        self.shared_prefix = (
            mask == "causal"
            and builder.shared_prefix
            and not getattr(self.model.position, "rotates_cached_keys", False)
        )
        self.lm_head = nn.Linear(dims.d_model, dims.vocab_size, bias=False)
        if dims.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def vocab_size(self) -> int:
        return self.lm_head.out_features

    def compile_layers(self) -> None:
        """torch.compile each layer by itself: layers of one shape share the work; nothing outside is traced.

        A module's methods in `uncompiled` stay as they are.  (Said by a decorator, it would cost each program that only
        lists parts three seconds of torch's compiler.)
        """
        for module in self.modules():
            for name in getattr(module, "uncompiled", ()):
                setattr(module, name, torch.compiler.disable(getattr(module, name)))  # type: ignore[no-untyped-call]
        for stack in self.modules():
            if isinstance(stack, Stack):
                for layer in (*stack.layers, *stack.further):
                    layer.compile()

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V): what decoding needs; training goes through `loss` and never makes them."""
        return self.logits(self.model(tokens, segments, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        found: Tensor = self.lm_head(self.scaled(hidden))
        return found

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        """Take in prompts (B, T) before the first new token: logits (B, V) of what follows them.

        Where they are a source that is seen in both directions, a target begins behind them, as in training.
        """
        if not self.opens:
            return self.logits(self.model(tokens, segments, cache)[:, -1])
        self.model(tokens, segments, cache, opened=torch.ones_like(tokens, dtype=torch.bool))
        return self.extend(tokens.new_full((len(tokens), 1), self.eos), cache)

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Take in the next token of each text (B, 1): logits (B, V) of what follows."""
        with few_rows(len(tokens), self.lm_head.in_features):
            return self.logits(self.model(tokens, None, cache, memory=cache.memory)[:, -1])

    def hidden(self, example: Example, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        """The states that say the targets: (B, T, D)."""
        row = joined(example)
        opened = row.opened if self.opens else None
        states: Tensor = self.model(row.tokens, row.segments, opened=opened, record=record, tie=tie)
        return row.of_inputs(states, example.inputs.shape[1])

    def states(self, example: Example, record: Record, tie: Tie | None = None) -> list[Tensor]:
        """All states that training asks: those that say the targets, then those that say what is further ahead."""
        record.further = None if example.further is None else []
        return [self.hidden(example, record, tie), *(record.further or ())]

    def loss(self, example: Example, *, share: float = 1.0, beside: Callable[[Tensor], Tensor] | None = None) -> Loss:
        """The loss of one batch, and what the layers measured.

        share, beside: an objective's own loss is share times the cross-entropy plus what `beside` makes of the states
        (B, T, D) that say the targets, a sum over them.
        """
        record = Record()
        tie = Tie.of(self.model.embed_tokens, self.lm_head.weight)
        hidden, *further = self.states(example, record, tie)
        total = self._cross_entropy(hidden, example.targets, example.weights, tie)
        total = total if share == 1.0 else share * total
        total = total if beside is None else total + beside(hidden)
        if example.weights is None:
            count = total.new_tensor(float(example.targets.numel()))
        else:
            count = example.weights.sum().clamp(min=NOTHING).to(total.dtype)
        if example.further is not None:
            assert example.further_weights is not None
            record.measures["train/next_token"] = total.detach() / count
            states, weights = torch.stack(further, dim=2), example.further_weights
            total = total + self._cross_entropy(states, example.further, weights)
        for extra in record.losses.values():
            total = total + extra * count
        return Loss(total, count, record.measures | {k: v.detach() for k, v in record.losses.items()})

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, weights: Tensor | None, tie: Tie | None = None) -> Tensor:
        """The weighted sum over states (..., D) and their targets (...)."""
        hidden, targets = self.scaled(hidden).flatten(0, -2), targets.flatten()
        weights = None if weights is None else weights.flatten()
        if weights is not None and (kept := scored_rows(weights)) is not None:
            hidden, targets, weights = hidden.index_select(0, kept), targets[kept], weights[kept]
        return linear_cross_entropy(
            hidden, self.lm_head.weight, targets, weights, z_loss=self.z_loss, smoothing=self.smoothing, tie=tie
        )

    @torch.no_grad()
    def redrawn(self, example: Example, generator: torch.Generator) -> Example:
        """The same example with targets that this model draws."""
        states = self.scaled(self.hidden(example)).flatten(0, 1)
        drawn = [
            torch.multinomial(self.lm_head(block).float().softmax(-1), 1, generator=generator)
            for block in torch.split(states, 512)
        ]
        return replace(example, targets=torch.cat(drawn).view_as(example.targets), further=None, further_weights=None)

    @torch.no_grad()
    def token_scores(self, example: Example) -> tuple[Tensor, Tensor]:
        """The loss of each target in nats, and whether the model holds it for the likeliest: (B, T)."""
        hidden = self.scaled(self.hidden(example)).flatten(0, 1)
        losses, hits = token_scores(hidden, self.lm_head.weight, example.targets.flatten())
        return losses.view_as(example.targets), hits.view_as(example.targets)

    @torch.no_grad()
    def scored_targets(self, example: Example) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, whether it is held for the likeliest, weight) of the targets that weigh something: (N,)."""
        assert example.weights is not None
        rows = example.weights.flatten().nonzero()[:, 0]
        hidden = self.scaled(self.hidden(example)).flatten(0, 1)[rows]
        losses, hits = token_scores(hidden, self.lm_head.weight, example.targets.flatten()[rows])
        return losses, hits, example.weights.flatten()[rows]

    def token_losses(self, example: Example) -> Tensor:
        """The loss of each target in nats: (B, T)."""
        return self.token_scores(example)[0]

    def scaled(self, hidden: Tensor) -> Tensor:
        """What the head takes: its product with the head's matrix gives the logits."""
        return hidden if self.logit_scale == 1.0 else hidden * self.logit_scale


def loss_of(objective: Any, model: LanguageModel, example: Example) -> Loss:
    """The loss that the objective asks for: its own, or the model's cross-entropy."""
    own: Callable[[LanguageModel, Example], Loss] | None = getattr(objective, "loss", None)
    return model.loss(example) if own is None else own(model, example)


class Encoder(LanguageModel):
    """A stack that sees all tokens at once; it fills blanks and cannot continue a text."""

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        raise UserError(
            "this model fills blanks and cannot continue a text\n"
            "    try: a run with architecture=causal, prefix or encoder_decoder"
        )


class EncoderDecoder(LanguageModel):
    """An encoder that reads the source, and a decoder that says the target; they share the embedding."""

    def __init__(self, builder: "ModelBuilder") -> None:
        super().__init__(builder, "causal")
        self.shared_prefix = False
        self.encoder = Stack(builder, "full", "encoder", table=self.model.embed_tokens)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of a decoder that repeats what its encoder reads."""
        if cache is None or cache.memory is None:
            memory = self.encode(tokens, segments)
            if cache is not None:
                cache.memory = memory
        else:
            memory = cache.memory
        return self.logits(self.model(tokens, segments, cache, memory=memory))

    def encode(self, source: Tensor, segments: Tensor | None = None, record: Record | None = None) -> EncoderOutput:
        """What the decoder looks at."""
        return EncoderOutput(self.encoder(source, segments, record=record), segments)

    def hidden(self, example: Example, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        if example.source is None:
            memory = self.encode(example.inputs, example.segments, record)
        else:
            memory = self.encode(example.source, example.source_segments, record)
        states: Tensor = self.model(example.inputs, example.segments, memory=memory, record=record, tie=tie)
        return states

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        cache.memory = self.encode(tokens, segments)
        return self.extend(tokens.new_full((len(tokens), 1), self.eos), cache)
