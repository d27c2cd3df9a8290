"""ablatio: a laboratory for language-model ablations.

Part authors need one line: `from ablatio import norms`, then `@norms.register("my_norm")`.
"""

from ablatio.registry import discovery as _plugins
from ablatio.registry import registry as _registry
from ablatio.registry.kinds import (
    activations,
    alignments,
    architectures,
    attentions,
    blocks,
    checkpointings,
    designs,
    inits,
    launchers,
    loggers,
    mlps,
    norms,
    objectives,
    optimizers,
    pefts,
    placements,
    positions,
    quantizations,
    rewards,
    schedules,
    sources,
    stabilizers,
    tokenizers,
)
from ablatio.registry.knobs import Fraction, NonNegative, OptionOf, Positive, Range
from ablatio.registry.rules import rule

__version__ = "0.1.0"

_registry.on_first_lookup(_plugins.load)

__all__ = [
    "Fraction",
    "NonNegative",
    "OptionOf",
    "Positive",
    "Range",
    "activations",
    "alignments",
    "architectures",
    "attentions",
    "blocks",
    "checkpointings",
    "designs",
    "inits",
    "launchers",
    "loggers",
    "mlps",
    "norms",
    "objectives",
    "optimizers",
    "pefts",
    "placements",
    "positions",
    "quantizations",
    "rewards",
    "rule",
    "schedules",
    "sources",
    "stabilizers",
    "tokenizers",
]
