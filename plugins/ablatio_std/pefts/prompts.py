"""Tokens that are not there: soft prompts before the embeddings, prefixes of keys and values in each layer."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Positive, pefts, rule
from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_seed, seeded
from ablatio.model.peft.adapters import freeze, widths
from ablatio.model.stack import Stack, Virtual
from ablatio_std.pefts._common import Layers, ToPeft, to_peft

Tokens = Annotated[int, Positive, "virtual tokens before each text"]
Hidden = Annotated[int | None, Positive, "width of the network that makes them; null: model.d_model"]


class VirtualPeft:
    """The base of methods that put virtual tokens before the texts of each stack: `before(stack)` makes them."""

    virtual = True

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def before(self, stack: Stack) -> Virtual:
        raise NotImplementedError

    def apply(self, model: nn.Module, seed: int) -> None:
        stacks = [(path, m) for path, m in model.named_modules() if isinstance(m, Stack)]
        if not stacks:
            raise UserError(
                "this model has no place for virtual tokens: it is none of ablatio's\n"
                "    try: model=hf model.path=DIR, which reads a folder of transformers into one of ours"
            )
        freeze(model)
        for path, stack in stacks:
            with seeded(named_seed(seed, f"{path}.virtual")), torch.device(stack.embed_tokens.weight.device):
                stack.virtual = self.before(stack).to(stack.embed_tokens.weight.dtype)

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """The tokens as they are made, and not what makes them; None for two stacks, of which peft has one set."""
        found = [m for m in model.modules() if isinstance(m, Stack) and m.virtual is not None]
        if len(found) > 1:
            return None
        return to_peft(*self.as_peft(found[0]), num_virtual_tokens=self.tokens, num_transformer_submodules=1)

    def as_peft(self, stack: Stack) -> tuple[str, Layers, set[str] | None]:
        """peft's kind, its tensors, and whether rows of keys may stand in another order (None)."""
        raise NotImplementedError


rule(
    when="facts.peft.virtual and not facts.attention.prefix",
    why="peft={peft.name} puts keys and values before each text, and attention={attention.name} takes none",
    fix="attention=mha",
    where="peft",
)
rule(
    when="facts.peft.virtual and data.length + peft.tokens > model.max_len and not facts.position.extends",
    why="{peft.tokens} virtual tokens and rows of {data.length} need positions that position={position.name} does not "
    "have: model.max_len={model.max_len}",
    fix="data.length={model.max_len - peft.tokens}",
    where="data.length",
)
for _name in ("prompt", "p_tuning"):
    rule(
        when=f"peft.name == '{_name}' and 'encoder' in facts.architecture.stacks",
        why="virtual tokens of peft={peft.name} read one another alone, and those of an encoder would read its text; "
        "keys and values need not read",
        fix="peft=prefix",
        where="peft",
    )


class SoftPrompt(Virtual):
    """Embeddings P (n, D), which the layers read like those of tokens; `made` may be a network that gives them."""

    def __init__(self, start: Tensor, made: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.tokens, self.prompt, self.made = len(start), nn.Parameter(start), made

    def embeddings(self) -> Tensor:
        return self.prompt if self.made is None else self.made(self.prompt)

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        return stack.keys_values_of(self.embeddings())


class _PromptPeft(VirtualPeft):
    def as_peft(self, stack: Stack) -> tuple[str, Layers, set[str] | None]:
        assert isinstance(stack.virtual, SoftPrompt)
        return "PROMPT_TUNING", {"": {"prompt_embeddings": stack.virtual.embeddings().detach() / stack.scale}}, set()


@pefts.register("prompt", paper="arXiv:2104.08691")
class PromptTuning(_PromptPeft):
    """[P; x]: n learned embeddings before those of the text; every document of a row has them before it.

    They start as embeddings of random tokens, as in the paper.
    """

    def __init__(self, *, tokens: Tokens = 20) -> None:
        super().__init__(tokens)

    def before(self, stack: Stack) -> SoftPrompt:
        table = stack.embed_tokens.weight.detach()
        drawn = torch.randint(len(table), (self.tokens,), device=table.device)
        return SoftPrompt(table[drawn] * stack.scale)


class LstmEncoder(nn.Module):
    """MLP(BiLSTM(P)): (n, D) -> same."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.mlp(self.lstm(x[None])[0])[0]
        return found


@pefts.register("p_tuning", paper="arXiv:2103.10385")
class PTuning(_PromptPeft):
    """[MLP(LSTM(P)); x]: a two-way LSTM and two linear maps with a ReLU make the virtual embeddings."""

    def __init__(
        self,
        *,
        tokens: Tokens = 20,
        hidden: Hidden = None,
        layers: Annotated[int, Positive, "of the LSTM"] = 2,
    ) -> None:
        super().__init__(tokens)
        self.hidden, self.layers = hidden, layers

    def before(self, stack: Stack) -> SoftPrompt:
        width = stack.d_model
        return SoftPrompt(torch.randn(self.tokens, width), LstmEncoder(width, self.hidden or width, self.layers))


class Prefix(Virtual):
    """Keys and values of n tokens for each layer: a table, or a network's answer to a small one."""

    def __init__(self, shapes: dict[int, tuple[int, int]], tokens: int, width: int, hidden: int | None) -> None:
        super().__init__()
        self.tokens, self.shapes = tokens, shapes
        total = sum(2 * heads * d_head for heads, d_head in shapes.values())
        self.table = nn.Parameter(torch.randn(tokens, total if hidden is None else width))
        self.made = None
        if hidden is not None:
            self.made = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, total))

    def flat(self) -> Tensor:
        """(n, total): of each layer its keys, then its values."""
        return self.table if self.made is None else self.made(self.table)

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        flat = self.flat()
        sizes = [2 * heads * d_head for heads, d_head in self.shapes.values()]
        held = {}
        for (layer, (heads, d_head)), part in zip(self.shapes.items(), flat.split(sizes, dim=1), strict=True):
            k, v = part.view(self.tokens, 2, heads, d_head).permute(1, 2, 0, 3)  # (H_kv, n, d_head) each
            held[layer] = (k, v)
        return held


def shapes_of(stack: Stack) -> dict[int, tuple[int, int]]:
    """Heads of keys and values in each layer, and how wide they are."""
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
    """softmax(q [P_k; k]^T) [P_v; v] in each layer, P = V tanh(U E): prefixes that a network makes while they train."""

    network = True

    def __init__(self, *, tokens: Tokens = 20, hidden: Hidden = None) -> None:
        super().__init__(tokens)
        self.hidden = hidden


@pefts.register("p_tuning_v2", paper="arXiv:2110.07602")
class PTuningV2(_PrefixPeft):
    """softmax(q [P_k; k]^T) [P_v; v] in each layer, P learned as it is: deep prompts without a network."""

    network, hidden = False, None

    def __init__(self, *, tokens: Tokens = 20) -> None:
        super().__init__(tokens)
