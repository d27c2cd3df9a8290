"""Virtual tokens: soft prompts before the embeddings, and prefixes of keys and values in each layer."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, pefts, rule
from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_seed, seeded
from ablatio.model.peft.adapters import Adapter, attach, freeze, said, widths
from ablatio.model.stack import Stack, Virtual
from ablatio_std.pefts._common import Layers, ToPeft, to_peft

Tokens = Annotated[int, Positive, "number of virtual tokens before each text"]
Hidden = Annotated[int | None, Positive, "width of the network that generates them; null: model.d_model"]


class VirtualPeft:
    """Base of methods that put virtual tokens before each text of a stack; `before(stack)` makes them."""

    virtual = True

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def before(self, stack: Stack) -> Virtual:
        """Make the virtual tokens of a stack."""
        raise NotImplementedError

    def apply(self, model: nn.Module, seed: int) -> None:
        stacks = [(path, m) for path, m in model.named_modules() if isinstance(m, Stack)]
        if not stacks:
            raise UserError(
                "this model has no place for virtual tokens: it is not one of ablatio's models\n"
                "    try: model=hf model.path=DIR, which loads a folder of transformers as a model of ablatio"
            )
        freeze(model)
        for path, stack in stacks:
            # A stream of its own for each stack, so that other parts of the model keep their initial values.
            with seeded(named_seed(seed, f"{path}.virtual")), torch.device(stack.embed_tokens.weight.device):
                stack.virtual = self.before(stack).to(stack.embed_tokens.weight.dtype)

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export the generated tokens, without their network; None for two stacks, as peft holds tokens for one."""
        stacks = [m for m in model.modules() if isinstance(m, Stack) and m.virtual is not None]
        if len(stacks) > 1:
            return None
        return to_peft(*self.as_peft(stacks[0]), num_virtual_tokens=self.tokens, num_transformer_submodules=1)

    def as_peft(self, stack: Stack) -> tuple[str, Layers, set[str] | None]:
        """Return peft's type, the tensors, and by_row of `to_peft` (None: the order of features of keys may differ)."""
        raise NotImplementedError


rule(
    when="facts.peft.virtual and not facts.attention.prefix",
    why="peft={peft.name} puts keys and values before each text, and attention={attention.name} does not support them",
    fix="attention=mha",
    where="peft",
)
rule(
    when="facts.peft.virtual and data.length + peft.tokens > model.max_len and not facts.position.extends",
    why="peft.tokens={peft.tokens} virtual tokens and data.length={data.length} tokens exceed model.max_len="
    "{model.max_len}, and position={position.name} has no positions beyond it",
    fix="data.length={model.max_len - peft.tokens}",
    where="data.length",
)
for _name in ("prompt", "p_tuning"):
    rule(
        when=f"peft.name == '{_name}' and 'encoder' in facts.architecture.stacks",
        why="virtual tokens of peft={peft.name} must attend only to each other, and an encoder's would attend to its "
        "text; with peft=prefix they are keys and values, which attend to nothing",
        fix="peft=prefix",
        where="peft",
    )


class SoftPrompt(Virtual):
    """Embeddings of n virtual tokens, (n, D): the parameter P, or the output of the network `made` for it.

    P is initialized to `start`; the layers process the embeddings as those of tokens.
    """

    def __init__(self, start: Tensor, made: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.tokens, self.prompt, self.made = len(start), nn.Parameter(start), made

    def embeddings(self) -> Tensor:
        """Return the embeddings, (n, D)."""
        return self.prompt if self.made is None else self.made(self.prompt)

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        return stack.keys_values_of(self.embeddings())


class PlacedPrompt(Adapter):
    """Embeddings of the virtual tokens in the places of given tokens, wherever these occur in a text: (B, T, W).

    ids  (n,): the virtual token number i takes the place of each token ids[i]
    """

    def __init__(self, ids: Sequence[int], start: Tensor, made: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(list(ids)))
        self.prompt, self.made = nn.Parameter(start), made

    def forward(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        rows = said(layer, tokens)
        own = self.prompt if self.made is None else self.made(self.prompt)
        here = tokens[..., None] == self.ids  # (B, T, n)
        # argmax of all False is 0: `where` leaves these rows as they are.
        placed = own[here.int().argmax(-1)].to(rows.dtype)
        return torch.where(here.any(-1, keepdim=True), placed, rows)


class _PromptPeft(VirtualPeft):
    def as_peft(self, stack: Stack) -> tuple[str, Layers, set[str] | None]:
        assert isinstance(stack.virtual, SoftPrompt)
        # peft's embeddings come before the factor on the embeddings of the stack, ours after it.
        return "PROMPT_TUNING", {"": {"prompt_embeddings": stack.virtual.embeddings().detach() / stack.scale}}, set()


@pefts.register("prompt", paper="arXiv:2104.08691")
class PromptTuning(_PromptPeft):
    """[P; x]: n learned embeddings before those of the text, in a packed row before each document.

    Initial values of P, as in the paper: embeddings of random tokens of the vocabulary, uniform numbers in
    -0.5 ... 0.5, or, with `ids`, the embeddings of a text or of label words, repeated until all n have one.

    Raises:
        UserError: an id of `ids` is not in the vocabulary.
    """

    def __init__(
        self,
        *,
        tokens: Tokens = 20,
        init: Annotated[Literal["vocabulary", "uniform"], "initial embeddings"] = "vocabulary",
        ids: Annotated[tuple[int, ...], "token ids whose embeddings they start from, repeated; empty: as init"] = (),
    ) -> None:
        super().__init__(tokens)
        self.init, self.ids = init, ids

    def before(self, stack: Stack) -> SoftPrompt:
        table = stack.embed_tokens.weight
        refuse_unknown_ids("peft.ids", self.ids, len(table))
        if self.init == "uniform" and not self.ids:
            return SoftPrompt(torch.rand(self.tokens, stack.d_model) - 0.5)
        # Drawn also where `ids` replaces them: the stream of random numbers stays the same.
        ids = torch.randint(len(table), (self.tokens,), device=table.device)
        if self.ids:
            ids = torch.tensor(self.ids, device=table.device)[torch.arange(self.tokens) % len(self.ids)]
        return SoftPrompt(stack.embeddings_of(ids).detach())


def refuse_unknown_ids(knob: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise UserError if an id is not one of the model's."""
    if unknown := [i for i in ids if not 0 <= i < vocab_size]:
        raise UserError(
            f"{knob} has the token id {unknown[0]}; this model has the ids 0 to {vocab_size - 1}\n    try: {knob}=[1]"
        )


class LstmEncoder(nn.Module):
    """MLP(BiLSTM(P)).  (n, D) -> same."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.lstm(x[None])[0])[0]
        return y


@pefts.register("p_tuning", paper="arXiv:2103.10385")
class PTuning(_PromptPeft):
    """[MLP(LSTM(P)); x]: virtual embeddings from a bidirectional LSTM and two linear layers with a ReLU.

    With `place` they stand anywhere in the text, as in the paper's templates: the i-th replaces the embedding of the
    token with the i-th of these ids, for example of words of a template that mark its places.

    Raises:
        UserError: an id of `place` is not in the vocabulary, or occurs twice in it.
    """

    def __init__(
        self,
        *,
        tokens: Tokens = 20,
        hidden: Hidden = None,
        layers: Annotated[int, Positive, "number of layers of the LSTM"] = 2,
        place: Annotated[
            tuple[int, ...], "token ids in whose places they stand, one each; empty: `tokens` before each text"
        ] = (),
    ) -> None:
        super().__init__(tokens)
        self.hidden, self.layers, self.place = hidden, layers, place

    def encoder(self, width: int) -> LstmEncoder:
        return LstmEncoder(width, self.hidden or width, self.layers)

    def before(self, stack: Stack) -> SoftPrompt:
        return SoftPrompt(torch.randn(self.tokens, stack.d_model), self.encoder(stack.d_model))

    def apply(self, model: nn.Module, seed: int) -> None:
        if not self.place:
            super().apply(model, seed)
            return
        tables = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding)]
        path, table = next(pair for pair in tables if pair[0].endswith("embed_tokens"))
        refuse_unknown_ids("peft.place", self.place, len(table.weight))
        if twice := [i for i in self.place if self.place.count(i) > 1]:
            raise UserError(f"peft.place has the token id {twice[0]} twice\n    try: peft.place=[{twice[0]}]")
        freeze(model)
        with seeded(named_seed(seed, f"{path}.adapter")), torch.device(table.weight.device):
            width = table.embedding_dim
            prompt = PlacedPrompt(self.place, torch.randn(len(self.place), width), self.encoder(width))
        attach(table, prompt.to(table.weight.dtype))

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        return None if self.place else super().to_peft(model)


class Prefix(Virtual):
    """Keys and values of n tokens for each layer: the parameter `table`, or the output of a network for it.

    shapes: {layer: (heads, d_head)}; hidden: hidden width of the network, None for no network.
    """

    def __init__(self, shapes: dict[int, tuple[int, int]], tokens: int, width: int, hidden: int | None) -> None:
        super().__init__()
        self.tokens, self.shapes = tokens, shapes
        total = sum(2 * heads * d_head for heads, d_head in shapes.values())
        self.table = nn.Parameter(torch.randn(tokens, total if hidden is None else width))
        self.made = None
        if hidden is not None:
            self.made = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, total))

    def flat(self) -> Tensor:
        """Return keys and values of all layers, for each layer first the keys: (n, sum of 2 heads d_head)."""
        return self.table if self.made is None else self.made(self.table)

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        flat = self.flat()
        sizes = [2 * heads * d_head for heads, d_head in self.shapes.values()]
        keys_values = {}
        for (layer, (heads, d_head)), part in zip(self.shapes.items(), flat.split(sizes, dim=1), strict=True):
            k, v = part.view(self.tokens, 2, heads, d_head).permute(1, 2, 0, 3)  # (H_kv, n, d_head) each
            keys_values[layer] = (k, v)
        return keys_values


def shapes_of(stack: Stack) -> dict[int, tuple[int, int]]:
    """Return the number of key-value heads and their width of each layer: {layer: (heads, d_head)}."""
    shapes = {}
    for path, layer in stack.layers.named_modules():
        if path.endswith("self_attn"):
            attention: Any = layer
            shapes[attention.layer] = widths(attention.k_proj)[0] // attention.d_head, attention.d_head
    return shapes


class _PrefixPeft(VirtualPeft):
    hidden: int | None
    network: bool

    def before(self, stack: Stack) -> Prefix:
        hidden = (self.hidden or stack.d_model) if self.network else None
        return Prefix(shapes_of(stack), self.tokens, stack.d_model, hidden)

    def as_peft(self, stack: Stack) -> tuple[str, Layers, set[str] | None]:
        assert isinstance(stack.virtual, Prefix)
        return "PREFIX_TUNING", {"": {"prompt_embeddings": stack.virtual.flat().detach()}}, None


@pefts.register("prefix", paper="arXiv:2101.00190")
class PrefixTuning(_PrefixPeft):
    """softmax(q [P_k; k]^T) [P_v; v] in each layer, P = V tanh(U E): prefixes from a trained network."""

    network = True

    def __init__(self, *, tokens: Tokens = 20, hidden: Hidden = None) -> None:
        super().__init__(tokens)
        self.hidden = hidden


@pefts.register("p_tuning_v2", paper="arXiv:2110.07602")
class PTuningV2(_PrefixPeft):
    """softmax(q [P_k; k]^T) [P_v; v] in each layer, P trained directly: deep prompts without a network."""

    network, hidden = False, None

    def __init__(self, *, tokens: Tokens = 20) -> None:
        super().__init__(tokens)
