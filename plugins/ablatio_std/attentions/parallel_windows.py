"""Parallel context windows: a long context read in independent windows (Ratner et al. 2023, arXiv:2212.10947)."""

from typing import Annotated, Unpack

from torch import Tensor

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import AttentionView
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads
from ablatio.model.context import Context
from ablatio_std.attentions._patterns import Patterned


def same_window(q: Tensor, k: Tensor, window: int, windows: int) -> Tensor:
    """True for keys in the query's window, and for all keys if the query is after the last window."""
    return (q // window == k // window) | (q >= window * windows)


@attentions.register("parallel_windows", paper="arXiv:2212.10947")
class ParallelWindows(Patterned):
    """Softmax over the query's own window of a context of `windows` windows; later tokens see the whole context.

    Every window has the positions 0 ... window - 1, and the tokens after the context continue at `window`, so that a
    text may exceed the range of the positions by windows - 1 windows.  With windows=1 it is ordinary attention.
    """

    rotates_cached_keys = False

    def __init__(
        self,
        *,
        windows: Annotated[int, Range(1), "number of independent windows at the start of each document"] = 3,
        window: Annotated[int | None, Range(1), "tokens of a window; null: model.max_len / (windows + 1)"] = None,
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        self.window, self.windows = window or max(1, wiring["max_len"] // (windows + 1)), windows
        super().__init__(n_kv_heads, (same_window, self.window, windows), **wiring)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        if ctx.memory is not None:
            return super().place(q, k, v, ctx)
        settings = self.window, self.windows
        moved = ctx.shared(("moved", settings), lambda: ctx.moved(self.shared_positions, q.dtype))

        def make() -> AttentionView:
            return AttentionView.of(moved, same_window(ctx.q_pos[..., :, None], ctx.k_pos[..., None, :], *settings))

        return *moved.place(self.layer, q, k, v), ctx.shared(("view", settings), make)

    def shared_positions(self, pos: Tensor) -> Tensor:
        """Map positions in the text to positions that all windows share.  Any shape -> the same."""
        context = self.window * self.windows
        # The context is one window long as far as positions are concerned; the text after it continues there.
        return (pos % self.window).where(pos < context, pos - context + self.window)


rule(
    when="attention.name == 'parallel_windows' and 'embed' in facts.position.uses",
    why="parallel windows share their positions, and position={position.name} has already added each token's position "
    "in the text to its embedding",
    fix="position=rope",
    where="position",
)
