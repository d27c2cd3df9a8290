"""Long contexts read in windows side by side (Ratner et al. 2023, arXiv:2212.10947)."""

from typing import Annotated, Unpack

from torch import Tensor

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import AttentionView
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads
from ablatio.model.context import Context
from ablatio_std.attentions._patterns import Patterned


def side_by_side(q: Tensor, k: Tensor, window: int, windows: int) -> Tensor:
    return (q // window == k // window) | (q >= window * windows)


@attentions.register("parallel_windows", paper="arXiv:2212.10947")
class ParallelWindows(Patterned):
    """Softmax over one's own window of a context of `windows` windows; what comes after the context sees all of it.

    Each window stands at the positions 0 ... window - 1, and what comes after goes on at `window`: so a text may be
    windows - 1 windows longer than the positions reach.  With windows=1 it is plain attention.
    """

    rotates_cached_keys = False

    def __init__(
        self,
        *,
        windows: Annotated[int, Range(1), "windows that do not see one another, at the start of each document"] = 3,
        window: Annotated[int | None, Range(1), "tokens of each; null: model.max_len / (windows + 1)"] = None,
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        self.window, self.windows = window or max(1, wiring["max_len"] // (windows + 1)), windows
        super().__init__(n_kv_heads, (side_by_side, self.window, windows), **wiring)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        if ctx.memory is not None:
            return super().place(q, k, v, ctx)
        settings = self.window, self.windows
        moved = ctx.shared(("moved", settings), lambda: ctx.moved(self.shared_places, q.dtype))

        def make() -> AttentionView:
            return AttentionView.of(moved, side_by_side(ctx.q_pos[..., :, None], ctx.k_pos[..., None, :], *settings))

        return *moved.place(self.layer, q, k, v), ctx.shared(("sight", settings), make)

    def shared_places(self, pos: Tensor) -> Tensor:
        """Windows on top of one another."""
        context = self.window * self.windows
        return (pos % self.window).where(pos < context, pos - context + self.window)


rule(
    when="attention.name == 'parallel_windows' and 'embed' in facts.position.uses",
    why="parallel windows stand at the same positions, and position={position.name} has added each token's own to the "
    "embedding before",
    fix="position=rope",
    where="position",
)
