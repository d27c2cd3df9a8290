"""Scores of a run on its held-out text, in total and for each source of a mixture."""

from typing import TYPE_CHECKING, Any

from ablatio.errors import UserError
from ablatio.registry import kinds

if TYPE_CHECKING:
    from ablatio.training.prepare import PreparedRun


def held_out_scores(
    run: "PreparedRun", length: int, tokens: int, stride: int | None, adapt: float | None = None
) -> dict[str, Any]:
    """Score held-out text in rows of `length` tokens, at most `tokens` of them (0: all), as `Run.evaluate` describes.

    Returns the length, the scores of the task, those of each source of a mixture (`loss/NAME`, `bpb/NAME`), the
    standard error and the number of tokens.  Raises UserError for a way of scoring that the rows do not allow.
    """
    names = kinds.tasks[run.config["task"]["name"]].facts["scores"]
    batches = run.task.validation(length, tokens)
    if stride is not None or adapt is not None:
        batches = _as_windows(run, batches, stride, adapt)
    if adapt is None:
        found = run.score(batches)
    else:
        from ablatio.training.test_time import TrainedOnTheWay

        with TrainedOnTheWay(batches, run.model, run.task.objective, adapt) as trained_on:
            found = run.score(trained_on)
    return (
        {"length": length}
        | ({} if stride is None else {"stride": stride})
        | ({} if adapt is None else {"adapt": adapt})
        | {k: found[k] for k in (*names, "error", "tokens") if k in found}
        | {k: value for k, value in found.items() if k not in names and k.partition("/")[0] in names}
    )


def _as_windows(run: "PreparedRun", batches: Any, stride: int | None, adapt: float | None) -> Any:
    """The windows of the held-out text, overlapping if there is a stride."""
    from ablatio.data.batches import ValidationBatches
    from ablatio.data.mixtures import MixedValidation

    if isinstance(batches, MixedValidation) and adapt is not None:
        raise UserError(
            f"adapt={adapt:g} learns from one held-out text, and this run has those of {', '.join(batches.parts)}\n"
            "    try: ablatio evaluate RUN, without --adapt"
        )
    if not isinstance(batches, ValidationBatches | MixedValidation):
        raise UserError(
            f"task={run.config['task']['name']} scores whole conversations, not windows of a text\n"
            "    try: a run with task=pretrain"
        )
    return batches if stride is None else batches.overlapping(stride)
