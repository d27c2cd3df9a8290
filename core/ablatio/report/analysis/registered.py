"""Settings that a study registered before its first run, those that a report replaces, and the deviations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ablatio.errors import ConfigError, UserError
from ablatio.report.read.notes import note
from ablatio.report.read.table import Table
from ablatio.sweep.registration import AMOUNTS, Amount, amount_in, read_amount

ALPHA = 0.05  # of studies that name none


def ask_anew(table: Table, metric: str, **asked: Any) -> None:
    """Let alpha, margin or target of a report's command take the place of the study's; a bare amount is of `metric`."""
    given = {k: v for k, v in asked.items() if v is not None}
    for name in AMOUNTS:
        if name in given:
            given[name] = _checked(name, str(given[name]), metric)
    if "alpha" in given and not 0 < given["alpha"] < 1:
        raise UserError(f"alpha is between 0 and 1, got {given['alpha']:g}\n    try: --alpha 0.05")
    if given:
        table.study = replace(table.study, settings={**table.study.settings, **given})


def _checked(name: str, text: str, metric: str) -> str:
    """The amount with its unit."""
    try:
        found = amount_in(name, text, metric)
    except ConfigError as error:
        problem = error.problems[0]
        raise UserError(f"--{name}: {problem.what}\n    try: --{problem.fix.replace('=', ' ')}") from None
    # With the unit, since a bare amount would later be read as one of the registered score.
    return f"{found.value!r}{found.unit}"


def primary(table: Table, asked: str | None) -> str | None:
    """The score to compare: as asked, else the one that the sweep set with `primary=`, if all finished runs have it."""
    chosen = table.study.settings.get("primary")
    return asked or (chosen if all(chosen in run.scores for run in table.counted) else None)


def amount(table: Table, name: str, metric: str) -> Amount | None:
    """Margin or target of the study in the unit of this score.

    Raises ValueError, with the reason, if the study has one that does not belong to this score: it was given in another
    unit, or without a unit for the score that was registered.
    """
    text = table.study.settings.get(name)
    if text is None:
        return None
    try:
        found = amount_in(name, str(text), metric)
    except ConfigError as error:
        raise ValueError(f"{name}: {error.problems[0].what}") from None
    meant = table.study.registered.get("metric", metric)
    if not read_amount(name, str(text)).unit and meant != metric:
        raise ValueError(note("other score", name=name, text=text, meant=meant, metric=metric))
    return found


def deviations(table: Table, metric: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what, value now, registered value) for each difference from the registration."""
    before, now = table.study.registered, table.study.settings
    if not before:
        return
    if before["metric"] != metric:
        yield "metric", metric, str(before["metric"])
    alpha = float(now.get("alpha", ALPHA))
    if before["alpha"] != alpha:
        yield "alpha", f"{alpha:g}", f"{before['alpha']:g}"
    for name in AMOUNTS:
        value = read_amount(name, str(now[name])).value if now.get(name) is not None else None
        if value != before.get(name):
            yield name, _said(value), _said(before.get(name))


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
