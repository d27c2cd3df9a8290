"""Evaluations of the finished runs of a study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ablatio.api import adapter
from ablatio.errors import AblatioError, UserError

if TYPE_CHECKING:
    from ablatio.report.read.run import Run


@dataclass(frozen=True, slots=True)
class RunEvaluation:
    """Result of evaluating one run.

    run     the run, as the report reads it
    state   measured; kept: an earlier call had measured the same; failed: `why` says what came
    values  {"eval/addition/accuracy": {"value", "error", "items", "better"}}; empty if it failed
    """

    run: "Run"
    state: Literal["measured", "kept", "failed"]
    values: Mapping[str, Mapping[str, Any]]
    why: str = ""


def evaluate_runs(
    study: Path,
    runs: "Sequence[Run]",
    overrides: Sequence[str],
    *,
    code: bool = False,
    tell: Callable[[RunEvaluation], None] = lambda one: None,
) -> list[RunEvaluation]:
    """Measure runs one after the other; see `StudyFolder.evaluate`."""
    from ablatio.api.run_folder import open_run

    measures = adapter.Measures.of(overrides, code=code)
    if not runs:
        raise UserError(f"{study} has no finished run yet\n    try: ablatio resume {study}")
    found, errors = list[RunEvaluation](), list[AblatioError]()
    for run in runs:
        try:
            if kept := measures.kept(run.folder):
                one = RunEvaluation(run, "kept", kept)
            else:
                one = RunEvaluation(run, "measured", open_run(run.folder).measure_by(measures))
        except AblatioError as error:
            errors.append(error)
            one = RunEvaluation(run, "failed", {}, str(error).splitlines()[0])
        found.append(one)
        tell(one)
    # What all runs refuse is a fault of the call and not of one run.
    if len(errors) == len(runs):
        raise errors[0]
    return found
