"""Durations as text."""

STEPS = ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h"))


def duration(seconds: float | None, digits: int = 3) -> str:
    """0.0123 -> 12.3 ms; 93 -> 93 s; 7260 -> 2.02 h, as the page writes them; empty if there is none."""
    if seconds is None:
        return ""
    for limit, factor, unit in STEPS:
        if seconds < limit:
            return f"{_rounded(seconds / factor, digits)} {unit}"
    return f"{_rounded(seconds / 86400, digits)} d"


def _rounded(value: float, digits: int) -> str:
    # Twice: with two digits alone 110 would be 1.1e+02.
    return f"{float(f'{value:.{digits}g}'):g}"
