"""Tables as pandas data frames; the only use of pandas."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablatio.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(what: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> "DataFrame":
    """Make a data frame with one line per row; UserError with the install command if pandas is missing.

    what  name of the API call, for the error message
    """
    try:
        # Not by catching ImportError, which a pandas that is installed but broken raises too.
        installed = importlib.util.find_spec("pandas") is not None
    except ValueError:  # sys.modules["pandas"] is None
        installed = False
    if not installed:
        missing = f"{what} is a pandas table, and pandas is not installed"
        raise UserError(f"{missing}\n    try: pip install 'ablatio[notebook]'")
    import pandas

    return pandas.DataFrame([dict(row) for row in rows], columns=None if columns is None else list(columns))
