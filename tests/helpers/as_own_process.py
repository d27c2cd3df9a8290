"""State of pytest that a forked child must not inherit from it."""

import logging
import warnings


def leave_pytest() -> None:
    """Give this process the handlers and warnings that a process of its own has.

    pytest's handlers would capture the messages, and its filters raise warnings: that of a package deprecating its own
    code ended a rank, unless another test had imported this package before.
    """
    logging.getLogger().handlers.clear()
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("error", module="ablatio")  # ours
