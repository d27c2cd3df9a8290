"""Numbers as text, for tables and sentences: scores, sizes, p values."""

from __future__ import annotations

import math

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None, signed: bool = False) -> str:
    """Four decimals with a true minus sign."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    return text.replace("-", "\u2212")


def short(value: float | None, digits: int = 4) -> str:
    """360689172480 -> 360.7 G."""
    if value is None:
        return ""
    factor, unit = next(((f, u) for f, u in UNITS if abs(value) >= f), (1.0, ""))
    # Rounded first: with three digits alone 999.9 would be 1e+03.
    return f"{float(f'{value / factor:.{digits}g}'):g} {unit}".rstrip()


def p_cell(p: float | None) -> str:
    """A p value for a table: three decimals, or `< 0.001`; empty if there is none."""
    if p is None or math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_said(p: float) -> str:
    """A p value for a sentence, after the word p: `< 0.001`, `= 0.012`, `= 0.25`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
