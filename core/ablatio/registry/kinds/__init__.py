"""The kinds of parts: one protocol per kind, which its parts implement, and the registry that holds them.

A protocol is the contract for plugin authors: the methods that the framework calls, with shapes and units, and the
facts, which are class attributes that rules and the model read without importing the part.  A registry's `wiring`
names the arguments that the framework passes to a constructor; a part declares those it needs left of its bare `*`.

Shapes: B batch, T query positions, S key positions, H heads, D model width (d_model), V vocabulary.  Nothing here
imports torch at run time, so that parts can be listed and configs checked without it.
"""

# ruff: noqa: I001, E501  (kinds are listed in the order in which they are imported)
# fmt: off
from ablatio.registry.kinds.model import Activation, Architecture, Attention, Block, Init, Mlp, Norm, Placement, Position, activations, architectures, attentions, blocks, inits, mlps, norms, placements, positions
from ablatio.registry.kinds.training import Batches, Checkpointing, Logger, Objective, Optimizer, Schedule, Stabilizer, Task, checkpointings, loggers, objectives, optimizers, schedules, stabilizers, tasks
from ablatio.registry.kinds.tuning import Alignment, Peft, PolicyMethod, Quantization, Reward, alignments, pefts, quantizations, rewards
from ablatio.registry.kinds.data import sources, templates, tokenizers
from ablatio.registry.kinds.sweep import Design, Launcher, designs, launchers

__all__ = [
    "Activation", "Alignment", "Architecture", "Attention", "Batches", "Block", "Checkpointing", "Design", "Init",
    "Launcher", "Logger", "Mlp", "Norm", "Objective", "Optimizer", "Peft", "Placement", "PolicyMethod", "Position",
    "Quantization", "Reward", "Schedule", "Stabilizer", "Task",
    "activations", "alignments", "architectures", "attentions", "blocks", "checkpointings", "designs", "inits",
    "launchers", "loggers", "mlps", "norms", "objectives", "optimizers", "pefts", "placements", "positions",
    "quantizations", "rewards", "schedules", "sources", "stabilizers", "tasks", "templates", "tokenizers",
]
