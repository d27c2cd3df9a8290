"""Make transformers know exported models in a process that never imports ablatio, such as lm-eval's.

torch calls `autoload` when it is imported: it is the entry point `ablatio` of the group `torch.backends`, which torch
offers to extensions (TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns them off).  transformers has no such group, and its way for
foreign classes, trust_remote_code, runs Python files of the model's folder.  Here only installed code runs, and a
folder holds numbers and plain values.

`autoload` waits until transformers' table of configs has been imported and adds one class to it.  Nothing else is
imported until a model of ablatio is loaded.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO = "transformers.models.auto"
TABLE = f"{AUTO}.configuration_auto"
WATCHED = (TABLE, f"{AUTO}.auto_factory", f"{AUTO}.tokenization_auto")  # the last two, if torch came within the first


def autoload() -> None:
    """Register the config of exported models with transformers now, or as soon as transformers is imported.

    Raises nothing: an error here would break `import torch`.
    """
    with suppress(Exception):
        if not register() and not any(isinstance(finder, AfterTable) for finder in sys.meta_path):
            # First, since Python asks its own finder only if none before it has the module.
            sys.meta_path.insert(0, AfterTable())


def register() -> bool:
    """Add AblatioConfig to transformers' table of configs; False if the table is not imported, or not yet complete."""
    auto = getattr(sys.modules.get(TABLE), "AutoConfig", None)
    if auto is None:
        return False
    from ablatio.interop.transformers_config import MODEL_TYPE, AblatioConfig

    auto.register(MODEL_TYPE, AblatioConfig, exist_ok=True)
    return True


class AfterTable(MetaPathFinder):
    """Finds the watched modules as Python would, and registers after one of them has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a watched module with a loader that registers; None for all other modules."""
        if name not in WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Registering(spec.loader, self)
        return spec


class Registering(Loader):
    """Executes a module by its own loader, then registers; everything else is that loader's."""

    def __init__(self, inner: Loader, finder: AfterTable) -> None:
        self.inner, self.finder = inner, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then register; after that the finder is no longer needed."""
        self.inner.exec_module(module)
        with suppress(Exception):
            if register():
                sys.meta_path.remove(self.finder)

    # Python and its tools ask a loader for more than these two methods, such as the source.
    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)
