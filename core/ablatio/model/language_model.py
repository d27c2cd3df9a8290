"""Language models: one stack or two with an output head; losses, scores and decoding steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.context import EncoderOutput, MaskKind
from ablatio.model.cross_entropy import Tie, linear_cross_entropy, scored_rows, token_scores
from ablatio.model.dims import Side
from ablatio.model.example import Example, Joined, Loss, joined
from ablatio.model.kv_cache import KVCache
from ablatio.model.matmul_backend import few_rows
from ablatio.model.ranks import ranks
from ablatio.model.records import Record
from ablatio.model.stack import Stack

if TYPE_CHECKING:
    from ablatio.model.builder import ModelBuilder
    from ablatio.model.divided_vocabulary import DividedVocabulary


MIN_TOTAL_WEIGHT = 1e-6  # lower bound on the total target weight: avoids 0/0 for a batch without scored targets


def total_weight(example: Example, like: Tensor) -> Tensor:
    """Sum of the weights of an example's targets, (), in the dtype and on the device of `like`."""
    if example.weights is None:
        return like.new_full((), float(example.targets.numel()))
    return example.weights.sum().clamp(min=MIN_TOTAL_WEIGHT).to(like.dtype)


class _FurtherHead(nn.Linear):
    """Output head of an objective: (..., D) -> (..., V)."""

    roles = {"weight": "head"}  # noqa: RUF012


class LanguageModel(nn.Module):
    """Decoder-only language model with an output head (`tied`: the head's matrix is the embedding's).

    opens      True: the source of an example is attended to in both directions (prefix LM); False: causally
    project_out   maps hidden states to the width of a tied token table, if that is not d_model; else None
    logit_map     maps the logits of the head (`head=`); None: the logits are the products
    eos        end-of-document id; a target starts with it after its source
    z_loss     weight of log^2 Z in the loss, Z the softmax normalizer (arXiv:2204.02311, section 5)
    bare       layers whose matrix is read without calling their `forward`, so adapters and hooks there have no effect
    shared_prefix   True if a cached prefix plus its continuation gives the output of one full pass, in training too
    smoothing  share of the target probability that is spread over the vocabulary (arXiv:1512.00567, section 7)
    further_heads  output heads that the objective adds, each with its own matrix; used in training only
    """

    bare = ("lm_head",)

    def __init__(self, builder: "ModelBuilder", mask: MaskKind, *, opens: bool = False, side: Side = "decoder") -> None:
        super().__init__()
        dims = builder.dims
        self.eos = builder.eos
        self.opens, self.logit_scale, self.z_loss, self.smoothing = opens, builder.logit_scale, 0.0, 0.0
        self.model = Stack(builder, mask, side, opens=opens)
        self.shared_prefix = mask == "causal" and builder.shared_prefix and not self.model.rotates_cached_keys
        width = self.model.embed_tokens.embedding_dim if dims.tied else dims.d_model
        self.project_out = nn.Linear(dims.d_model, width, bias=False) if width != dims.d_model else None
        self.lm_head = nn.Linear(width, dims.vocab_size, bias=False)
        if dims.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.logit_map = builder.head()
        self.divided: DividedVocabulary | None = None  # if devices divide the token table and the output head
        heads = (_FurtherHead(width, dims.vocab_size, bias=False) for _ in range(builder.further_heads))
        self.further_heads = nn.ModuleList(heads)

    @property
    def vocab_size(self) -> int:
        """Rows of the output head: the tokenizer's ids, the objective's, and unused ones."""
        return self.lm_head.out_features

    def compile_layers(self) -> None:
        """Compile each layer separately with torch.compile: layers of one shape share the compiled code.

        Methods named in a module's `uncompiled` are not compiled. They are listed there, not decorated with
        torch.compiler.disable, because the decorator imports the compiler: three seconds for programs that only list
        parts.
        """
        for module in self.modules():
            for name in getattr(module, "uncompiled", ()):
                setattr(module, name, torch.compiler.disable(getattr(module, name)))  # type: ignore[no-untyped-call]
        for stack in self.modules():
            if isinstance(stack, Stack):
                for layer in (*stack.layers, *stack.further):
                    layer.compile()

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T), for decoding; training uses `loss`, which never forms all logits."""
        return self.logits(self.model(tokens, segments, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (..., D) -> (..., V)."""
        return self._mapped(self.lm_head(self.scaled(hidden)))

    def _mapped(self, logits: Tensor) -> Tensor:
        return logits if self.logit_map is None else self.logit_map(logits)

    def training_logits(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Logits that training computes from the result of `states`, (..., V) each, for counting its FLOPs."""
        further = [head(self.scaled(states[0])) for head in self.further_heads]
        return [*(self.logits(hidden) for hidden in states), *further]

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        """Process prompts (B, T) and return the logits (B, V) of the first new token.

        In a prefix LM the prompts are the source and the target starts with eos after them, as in training.
        """
        if not self.opens:
            return self.logits(self.model(tokens, segments, cache)[:, -1])
        self.model(tokens, segments, cache, opened=torch.ones_like(tokens, dtype=torch.bool))
        return self.extend(tokens.new_full((len(tokens), 1), self.eos), cache)

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Process the next token of each text (B, 1) and return the logits (B, V) of the one after it."""
        with few_rows(len(tokens), self.lm_head.in_features):
            return self.logits(self.model(tokens, None, cache, memory=cache.memory)[:, -1])

    def read_ahead(
        self, tokens: Tensor, cache: KVCache, caches: Sequence[KVCache], tree: Tensor | None = None
    ) -> list[Tensor]:
        """Process tokens (B, T); return the logits (B, T, V) of the next token, and of those further ahead.

        caches  of the siblings of the last layer, one each
        tree    (T, T): True where a token sees another: the tokens are a tree of continuations of the cached text
        """
        record = Record(further=[], further_caches=caches)
        states = self.model(tokens, None, cache, record=record, tree=tree)
        for own in caches:
            own.advance(tokens.shape[1])
        return [self.logits(x) for x in (states, *(record.further or ()))]

    def hidden(self, example: Example, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        """Hidden states from which the targets are predicted: (B, T, D)."""
        row = joined(example)  # source and inputs in rows of L tokens
        return row.of_inputs(self.states_of(row, record, tie), example.inputs.shape[1])

    def states_of(self, row: Joined, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        """Hidden states of rows of L tokens: (B, L, D)."""
        opened = row.opened if self.opens else None
        states: Tensor = self.model(row.tokens, row.segments, opened=opened, record=record, tie=tie)
        return states

    def states(self, example: Example, record: Record, tie: Tie | None = None) -> list[Tensor]:
        """All hidden states for training, (B, T, D) each: for the targets, then for tokens further ahead."""
        record.further = None if example.further is None else []
        return [self.hidden(example, record, tie), *(record.further or ())]

    def loss(self, example: Example, *, share: float = 1.0, beside: Callable[[Tensor], Tensor] | None = None) -> Loss:
        """Compute the loss of one batch: share * cross-entropy + beside(hidden), plus auxiliary losses of the layers.

        share, beside  for objectives with a loss of their own: `beside` maps the hidden states (B, T, D) of the
                       targets to a scalar summed over the targets
        """
        record = Record()
        tie = Tie.of(self.model.embed_tokens, self.lm_head.weight) if self.divided is None else None
        hidden, *further = self.states(example, record, tie)
        total = self._cross_entropy(hidden, example.targets, example.weights, tie)
        total = total if share == 1.0 else share * total
        total = total if beside is None else total + beside(hidden)
        count = total_weight(example, total)
        if example.further is not None:
            assert example.further_weights is not None
            # Logged separately, because the total also contains the tokens further ahead.
            record.measures["train/next_token"] = total.detach() / count
            states, weights = torch.stack(further, dim=2), example.further_weights  # (B, T, n, D), (B, T, n)
            # Without the tie, which holds the gradient of one use of the head: autograd adds this one.
            total = total + self._cross_entropy(states, example.further, weights)
        for extra in record.losses.values():  # per target, while the total is a sum over targets
            total = total + extra * ranks().mean(count)
        return Loss(total, count, record.measures | {k: v.detach() for k, v in record.losses.items()})

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, weights: Tensor | None, tie: Tie | None = None) -> Tensor:
        """Weighted sum of the cross-entropies: states (..., D), targets (...) -> ()."""
        hidden, targets = self.scaled(hidden).flatten(0, -2), targets.flatten()
        weights = None if weights is None else weights.flatten()
        if weights is not None and (kept := scored_rows(weights)) is not None:
            hidden, targets, weights = hidden.index_select(0, kept), targets[kept], weights[kept]
        given: dict[str, Any] = {"z_loss": self.z_loss, "smoothing": self.smoothing}
        given["logit_map"] = self.logit_map
        if self.divided is not None:  # refused with a map that is not elementwise
            return self.divided.cross_entropy(hidden, targets, weights, **given)
        return linear_cross_entropy(hidden, self.lm_head.weight, targets, weights, tie=tie, **given)

    @torch.no_grad()
    def redrawn(self, example: Example, generator: torch.Generator) -> Example:
        """Return the example with targets sampled from this model."""
        states = self.scaled(self.hidden(example)).flatten(0, 1)  # (B * T, D)
        drawn = [  # in blocks of rows, to bound the memory of the logits
            torch.multinomial(self._mapped(self.lm_head(block).float()).softmax(-1), 1, generator=generator)
            for block in torch.split(states, 512)
        ]
        return replace(example, targets=torch.cat(drawn).view_as(example.targets), further=None, further_weights=None)

    @torch.no_grad()
    def token_scores(self, example: Example) -> tuple[Tensor, Tensor]:
        """Return the loss of each target in nats and whether the model ranks it first: (B, T) each."""
        hidden = self.scaled(self.hidden(example)).flatten(0, 1)
        losses, hits = self._scores(hidden, example.targets.flatten())
        return losses.view_as(example.targets), hits.view_as(example.targets)

    @torch.no_grad()
    def scored_targets(self, example: Example) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, top-1 hit and weight of the targets with nonzero weight: (N,) each."""
        assert example.weights is not None
        rows = example.weights.flatten().nonzero()[:, 0]  # (N,)
        hidden = self.scaled(self.hidden(example)).flatten(0, 1)[rows]
        losses, hits = self._scores(hidden, example.targets.flatten()[rows])
        return losses, hits, example.weights.flatten()[rows]

    def _scores(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and top-1 hit of each target: (N, W), (N,) -> (N,) each."""
        if self.divided is not None:
            return self.divided.token_scores(hidden, targets, logit_map=self.logit_map)
        return token_scores(hidden, self.lm_head.weight, targets, logit_map=self.logit_map)

    def token_losses(self, example: Example) -> Tensor:
        """Return the loss of each target in nats: (B, T)."""
        return self.token_scores(example)[0]

    def scaled(self, hidden: Tensor) -> Tensor:
        """Input of the output head: hidden states times `logit_scale`, projected to its width, (..., D) -> (..., W)."""
        hidden = hidden if self.logit_scale == 1.0 else hidden * self.logit_scale
        return hidden if self.project_out is None else self.project_out(hidden)


def loss_of(objective: Any, model: LanguageModel, example: Example) -> Loss:
    """Return the objective's own loss if it defines one, else the model's cross-entropy."""
    own: Callable[[LanguageModel, Example], Loss] | None = getattr(objective, "loss", None)
    return model.loss(example) if own is None else own(model, example)


class Encoder(LanguageModel):
    """Bidirectional encoder: every token sees all others; predicts masked tokens and cannot continue a text."""

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        """Raise UserError: an encoder cannot decode."""
        raise UserError(
            "this model is an encoder: it predicts masked tokens and cannot continue a text\n"
            "    try: a run with architecture=causal, prefix or encoder_decoder"
        )


class EncoderDecoder(LanguageModel):
    """Encoder for the source and decoder for the target, with a shared embedding.

    decoder_start  id of the decoder's first input; None: eos, with which objectives and tasks begin a target
    source_end     True if eos ends a source for the encoder; objectives and tasks begin a source with it
    """

    def __init__(self, builder: "ModelBuilder", *, decoder_start: int | None = None, source_end: bool = False) -> None:
        super().__init__(builder, "causal")
        self.decoder_start = self.eos if decoder_start is None else decoder_start
        self.source_end = source_end
        if self.decoder_start >= self.vocab_size:
            raise UserError(
                f"architecture.decoder_start={decoder_start} is no id of this model, which has {self.vocab_size}\n"
                "    try: architecture.decoder_start=null"
            )
        self.shared_prefix = False  # a prompt belongs to the encoder, whose states are shared through `memory` instead
        self.encoder = Stack(builder, "full", "encoder", table=self.model.embed_tokens)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) for decoder inputs `tokens`; the encoder reads the same tokens if nothing is cached."""
        if cache is None or cache.memory is None:
            memory = self.encode(tokens, segments)
            if cache is not None:
                cache.memory = memory
        else:
            memory = cache.memory
        return self.logits(self.model(tokens, segments, cache, memory=memory))

    def encode(self, source: Tensor, segments: Tensor | None = None, record: Record | None = None) -> EncoderOutput:
        """Encode the source tokens (B, S) for cross-attention."""
        return EncoderOutput(self.encoder(source, segments, record=record), segments)

    def hidden(self, example: Example, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        """Decoder states from which the targets are predicted: (B, T, D); without a source, inputs are encoded."""
        inputs = example.inputs
        if example.source is None:
            memory = self.encode(inputs, example.segments, record)
        else:
            memory = self.encode(self._source(example.source, example.source_segments), example.source_segments, record)
            if self.decoder_start != self.eos:
                begins = starts_of(inputs, example.segments) & (inputs == self.eos)
                inputs = inputs.masked_fill(begins, self.decoder_start)
        states: Tensor = self.model(inputs, example.segments, memory=memory, record=record, tie=tie)
        return states

    def _source(self, source: Tensor, segments: Tensor | None) -> Tensor:
        """Sources (B, S) as the encoder reads them: with `source_end`, an eos at the beginning moves to the end."""
        return eos_to_the_end(source, segments, self.eos) if self.source_end else source

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        """Encode the prompts (B, T) and return the logits (B, V) of the decoder's first token."""
        cache.memory = self.encode(self._source(tokens, segments), segments)
        return self.extend(tokens.new_full((len(tokens), 1), self.decoder_start), cache)


def starts_of(tokens: Tensor, segments: Tensor | None) -> Tensor:
    """True for the first token of each document of a row: (B, T)."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    found[:, 0] = True
    if segments is not None:
        found[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return found


def eos_to_the_end(tokens: Tensor, segments: Tensor | None, eos: int) -> Tensor:
    """Move eos from the beginning of each document of a row to its end; documents without it stay: (B, T) -> same."""
    first = starts_of(tokens, segments)
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    beginning = torch.where(first, place, 0).cummax(1).values  # of the document of each token
    moved = (first & (tokens == eos)).gather(1, beginning)
    last = torch.cat([first[:, 1:], torch.ones_like(first[:, :1])], dim=1)
    shifted = torch.where(last, eos, tokens.roll(-1, 1))
    return torch.where(moved, shifted, tokens)
