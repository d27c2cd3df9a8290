"""The kinds of parts: one protocol per kind, which its parts implement, and the registry that holds them.

A protocol is the contract for plugin authors: the methods that the framework calls, with shapes and units, and the
facts, which are class attributes that rules and the model read without importing the part.  A registry's `wiring`
names the arguments that the framework passes to a constructor; a part declares those it needs left of its bare `*`.

Shapes: B batch, T query positions, S key positions, H heads, D model width (d_model), V vocabulary.  Nothing here
imports torch at run time, so that parts can be listed and configs checked without it.

Everything that a module of this package defines can be imported from here: a new built-in kind is one `Registry(...)`
in one of them, and no list.  The star imports keep the names known to type checkers.
"""

# ruff: noqa: I001, F403  (kinds are listed in the order in which they are imported)
from ablatio.registry.kinds.stack import *
from ablatio.registry.kinds.model import *
from ablatio.registry.kinds.whole_model import *
from ablatio.registry.kinds.devices import *
from ablatio.registry.kinds.training import *
from ablatio.registry.kinds.tuning import *
from ablatio.registry.kinds.data import *
from ablatio.registry.kinds.pipeline import *
from ablatio.registry.kinds.use import *
from ablatio.registry.kinds.evaluation import *
from ablatio.registry.kinds.sweep import *
