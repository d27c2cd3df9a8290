"""The kinds of parts: what is handed over, what a part does, in which shapes, and the registry of each.

Shapes: B batch, T query time, S key time, H heads, D width, V vocabulary.  Nothing here imports torch.

What a module of this package defines can be imported from here: a new kind of ours is one `Registry(...)` in one of
them, and no list.  The star imports keep the names known to type checkers.
"""

# ruff: noqa: I001, F403  (kinds are listed in the order in which they are imported)
from ablatio.registry.kinds.model import *
from ablatio.registry.kinds.training import *
from ablatio.registry.kinds.tuning import *
from ablatio.registry.kinds.data import *
from ablatio.registry.kinds.sweep import *
