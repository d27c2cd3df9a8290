"""ablatio: a laboratory for language-model ablations.

Part authors need one line: `from ablatio import norms`, then `@norms.register("my_norm")`.
"""

from ablatio.registry import discovery as _plugins
from ablatio.registry import registry as _registry
from ablatio.registry.kinds import *  # noqa: F403  (every registry: norms, positions, ...)
from ablatio.registry.knobs import Fraction, NonNegative, OptionOf, Positive, Range
from ablatio.registry.rules import rule

__version__ = "0.1.0"

_registry.on_first_lookup(_plugins.load)

__all__ = ["Fraction", "NonNegative", "OptionOf", "Positive", "Range", "rule"]
__all__ += sorted(name for name, value in list(vars().items()) if isinstance(value, _registry.Registry))
