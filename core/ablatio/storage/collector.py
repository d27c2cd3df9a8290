"""How often the garbage collector runs in a process of the command line.

Imports create a million objects that live until the process ends.  With Python's settings a third of the CPU time of
`import lightning.pytorch` (5.3 s, torch included) goes into looking for garbage among them, a part of it at the end.
"""

import gc

_AT_IMPORT = (100_000, 20, 100)
_IN_TRAINING = (10_000, 10, 10)  # cycles there may hold large tensors


def collect_seldom() -> None:
    """From here on, while modules are imported: collect after 100,000 new objects.

    For a process that is ours; one that only imports ablatio keeps its own settings.
    """
    gc.set_threshold(*_AT_IMPORT)


def collect_in_training() -> None:
    """End of `collect_seldom`: what was imported is not looked at again, and garbage is collected as it is made."""
    # A caller that has set thresholds of its own keeps them.
    if gc.get_threshold() == _AT_IMPORT:
        gc.freeze()
        gc.set_threshold(*_IN_TRAINING)
