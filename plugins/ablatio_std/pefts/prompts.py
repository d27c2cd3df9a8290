"""Tokens that are not there: soft prompts before the embeddings, prefixes of keys and values in each layer."""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Positive, pefts, rule
from ablatio.errors import UserError
from ablatio.model.adapters import freeze, widths
from ablatio.model.roles import named_seed, seeded
from ablatio.model.stack import Stack, Virtual

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
                "    try: peft=hf peft.method=prefix_tuning, on a model of transformers"
            )
        freeze(model)
        for path, stack in stacks:
            with seeded(named_seed(seed, f"{path}.virtual")), torch.device(stack.embed_tokens.weight.device):
                stack.virtual = self.before(stack).to(stack.embed_tokens.weight.dtype)


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

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        return stack.keys_values_of(self.prompt if self.made is None else self.made(self.prompt))


@pefts.register("prompt", paper="arXiv:2104.08691")
class PromptTuning(VirtualPeft):
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
class PTuning(VirtualPeft):
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

    def forward(self, stack: Stack) -> dict[int, tuple[Tensor, Tensor]]:
        flat = self.table if self.made is None else self.made(self.table)  # (n, total)
        sizes = [2 * heads * d_head for heads, d_head in self.shapes.values()]
        held = {}
        for (layer, (heads, d_head)), part in zip(self.shapes.items(), flat.split(sizes, dim=1), strict=True):
            k, v = part.view(self.tokens, 2, heads, d_head).permute(1, 2, 0, 3)  # (H_kv, n, d_head) each
            held[layer] = (k, v)
        return held


class _PrefixPeft(VirtualPeft):
    hidden: int | None
    network: bool

    def before(self, stack: Stack) -> Prefix:
        shapes = {}
        for path, layer in stack.layers.named_modules():
            if path.endswith("self_attn"):
                attention: Any = layer
                shapes[attention.layer] = widths(attention.k_proj)[0] // attention.d_head, attention.d_head
        return Prefix(shapes, self.tokens, stack.d_model, (self.hidden or stack.d_model) if self.network else None)


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
