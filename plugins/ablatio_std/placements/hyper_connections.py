"""Hyper-connections (Zhu et al. 2024, arXiv:2409.19606): n residual streams with learned connections between them."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Range, placements
from ablatio_std.placements._common import Sublayer

Streams = Annotated[int, Range(1), "residual streams; the paper's expansion rate n"]


class _Connected(nn.Module):
    """Base of both forms: a sublayer reads the streams (B, T, n, D) by a_m, mixes them by A_r and writes to them by b.

    The initial values give a pre-norm residual: sublayer number k reads stream k mod n, adds its output to all streams,
    and streams are not mixed.  Unlike the paper, init= alone decides the size of the sublayers' output projections (the
    paper rescales them by sqrt(n)), and no connection has weight decay (the paper's dynamic ones have).
    """

    gain = 1.0

    def __init__(self, streams: int, layer: int | None, sublayer: int) -> None:
        super().__init__()
        self.streams = streams
        if layer is None:
            return
        # The usual block has two sublayers; in blocks with more, sublayers of neighboring layers may read one stream.
        read = torch.zeros(streams, 1)
        read[(2 * layer + sublayer) % streams] = 1.0
        self.read_and_mix = nn.Parameter(torch.cat([read, torch.eye(streams)], dim=1))  # (n, 1 + n): a_m | A_r
        self.write = nn.Parameter(torch.ones(streams))  # (n,): b
        self.roles = {"read_and_mix": "vector", "write": "vector", "to_alpha": "vector", "to_beta": "vector"}

    def open(self, x: Tensor) -> Tensor:
        """Copy x to n streams.  (B, T, D) -> (B, T, n, D)."""
        return x.unsqueeze(-2).repeat_interleave(self.streams, dim=-2)

    def close(self, x: Tensor, norm: nn.Module) -> Tensor:
        # The sum, not the mean: the norm after it removes the factor n.
        return norm(x.sum(-2))  # type: ignore[no-any-return]

    def connected(self, x: Tensor, alpha: Tensor, beta: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        """A_r^T x + beta f(norm(a_m^T x)) with alpha = [a_m, A_r], (..., n, 1 + n), and beta, (..., n)."""
        # One product reads the sublayer's input and mixes the streams.
        mixed = alpha.transpose(-1, -2) @ x  # (B, T, 1 + n, D)
        y = sublayer(norm(mixed[..., 0, :]))
        return mixed[..., 1:, :] + beta.unsqueeze(-1) * y.unsqueeze(-2)


@placements.register("static_hyper_connections", paper="arXiv:2409.19606")
class StaticHyperConnections(_Connected):
    """x' = A_r^T x + b f(norm(a_m^T x)) on n residual streams, with learned a_m (n,), A_r (n, n) and b (n,).

    The sum of the streams is the output after the last layer.  (B, T, n, D) -> same.
    """

    def __init__(self, layer: int | None, sublayer: int, *, streams: Streams = 4) -> None:
        super().__init__(streams, layer, sublayer)

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.Module) -> Tensor:
        return self.connected(x, self.read_and_mix, self.write, sublayer, norm)


@placements.register("hyper_connections", paper="arXiv:2409.19606")
class HyperConnections(_Connected):
    """x' = A_r^T x + b f(norm(a_m^T x)) on n residual streams; a_m, A_r and b depend on the token.

    (a_m, A_r) = static + s_a tanh(norm'(x) W_a) and b = static + s_b tanh(norm'(x) w_b), all learned; initially s_a =
    s_b = 0.01 and W_a = w_b = 0.  The sum of the streams is the output after the last layer.  (B, T, n, D) -> same.
    """

    n_norms = 2

    def __init__(self, d_model: int, layer: int | None, sublayer: int, *, streams: Streams = 4) -> None:
        super().__init__(streams, layer, sublayer)
        if layer is None:
            return
        self.to_alpha = nn.Parameter(torch.zeros(streams + 1, d_model))
        self.to_beta = nn.Parameter(torch.zeros(1, d_model))
        self.alpha_scale, self.beta_scale = (nn.Parameter(torch.full((1,), 0.01)) for _ in "ab")

    def forward(self, x: Tensor, sublayer: Sublayer, norm: nn.ModuleList) -> Tensor:
        before, streams_norm = norm
        normed = streams_norm(x)  # (B, T, n, D)
        alpha = self.read_and_mix + self.alpha_scale * (normed @ self.to_alpha.T).tanh()  # (B, T, n, 1 + n)
        beta = self.write + self.beta_scale * (normed @ self.to_beta.T).tanh().squeeze(-1)  # (B, T, n)
        return self.connected(x, alpha, beta, sublayer, before)
