"""ablatio: a laboratory for language-model ablations.

Part authors need one line: `from ablatio import norms`, then `@norms.register("my_norm")`.  Notebooks and scripts begin
with `ablatio.train`, `ablatio.open_run`, `ablatio.run_study`, `ablatio.open_study`, `ablatio.build_model` and
`ablatio.list_parts`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ablatio.registry import discovery as _plugins
from ablatio.registry import registry as _registry
from ablatio.registry.kinds import *  # noqa: F403  (every registry: norms, positions, ...)
from ablatio.registry.knobs import Fraction, NonNegative, OptionOf, Positive, Range, Schedulable
from ablatio.registry.rules import rule

__version__ = "0.2.0"

_registry.on_first_lookup(_plugins.load)

__all__ = ["Fraction", "NonNegative", "OptionOf", "Positive", "Range", "Schedulable", "rule"]
__all__ += sorted(name for name, value in list(vars().items()) if isinstance(value, _registry.Registry))

# The Python API and the errors: imported on first use, for `import ablatio` needs neither torch nor Hydra.
if TYPE_CHECKING:
    from ablatio.api.models import build_model
    from ablatio.api.parts import PartSummary, list_parts
    from ablatio.api.run_folder import RunFolder, open_run
    from ablatio.api.session_parts import load_parts
    from ablatio.api.studies import StudyFolder, StudyVerdict, open_study, resume_study, run_study
    from ablatio.api.training_runs import resume_run, train
    from ablatio.errors import AblatioError, ConfigError, Diverged, EnvironmentFault, Preempted, SweepFailed, UserError

_LAZY = {
    "ablatio.api.models": ("build_model",),
    "ablatio.api.parts": ("PartSummary", "list_parts"),
    "ablatio.api.run_folder": ("RunFolder", "open_run"),
    "ablatio.api.session_parts": ("load_parts",),
    "ablatio.api.studies": ("StudyFolder", "StudyVerdict", "open_study", "resume_study", "run_study"),
    "ablatio.api.training_runs": ("resume_run", "train"),
    "ablatio.errors": (
        "AblatioError", "ConfigError", "Diverged", "EnvironmentFault", "Preempted", "SweepFailed", "UserError",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}
__all__ += [
    "AblatioError", "ConfigError", "Diverged", "EnvironmentFault", "PartSummary", "Preempted", "RunFolder",
    "StudyFolder", "StudyVerdict", "SweepFailed", "UserError", "build_model", "list_parts", "load_parts", "open_run",
    "open_study", "resume_run", "resume_study", "run_study", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ablatio' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
