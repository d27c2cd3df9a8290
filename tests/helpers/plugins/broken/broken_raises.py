"""Registers a norm, a rule and a kind, then fails: nothing of it may stay."""

from torch import nn

from ablatio import norms, rule
from ablatio.registry.registry import Registry

halves = Registry("half", "A kind of a plugin that fails.")


@norms.register("half_registered")
class HalfRegistered(nn.Identity):
    """x.  (..., d_model) -> same."""

    def __init__(self, d_model: int) -> None:
        super().__init__()


rule(when="norm.name == 'half_registered'", why="half", fix="norm=rmsnorm")

raise RuntimeError("this plugin fails on purpose")
