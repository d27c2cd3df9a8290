"""Score several runs as one model: the mean of their probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ablatio.api import adapter
from ablatio.api.session import computing
from ablatio.errors import UserError
from ablatio.registry import kinds
from ablatio.storage.paths import shell_word

if TYPE_CHECKING:
    from ablatio.api.run_folder import RunFolder


def evaluate_together(
    runs: "Sequence[RunFolder]",
    lengths: Sequence[int] = (),
    *,
    tokens: int = 0,
    objective: str | None = None,
    stride: int | None = None,
) -> list[dict[str, Any]]:
    """Score the mean of the probabilities of several runs on the held-out text of the first.

    lengths, tokens, objective, stride  as for `RunFolder.evaluate_lengths`

    Returns for each length the scores of the first run and those of all runs, which have their number as `models`.
    Raises UserError for runs with different tokenizers or vocabularies, or whose task does not score documents.
    """
    first, *others = runs
    for run in runs:
        _refuse_other_tasks(run)
    for run in others:
        _refuse_other_tokenizers(first, run)
    plain = first.evaluate_lengths(lengths, tokens=tokens, objective=objective, stride=stride)
    with computing():
        return [row for one in plain for row in (one, *_of_all(runs, one, tokens, objective, stride))]


def _of_all(
    runs: "Sequence[RunFolder]", plain: dict[str, Any], tokens: int, objective: str | None, stride: int | None
) -> list[dict[str, Any]]:
    """The scores of all runs where the first one has `plain`; none if it refused the length."""
    from ablatio.model.ensemble import Ensemble

    if "refused" in plain:
        return []
    run, _ = adapter.restored(runs[0].folder, runs[0].step, scored=True)
    if objective:
        run.ask(objective)
    batches = run.task.validation(plain["length"], tokens)
    batches = batches if stride is None else batches.overlapping(stride)
    try:
        found = run.score(batches, model=Ensemble([run.model, *(other.model for other in runs[1:])]))
    except UserError as error:
        if "model.vocab_size" in str(error):
            raise
        return [{"length": plain["length"], "models": len(runs), "refused": str(error).split("\n")[0]}]
    return [{"length": plain["length"], "models": len(runs)} | {k: found[k] for k in plain if k in found}]


def _refuse_other_tasks(run: "RunFolder") -> None:
    task = run.config["task"]["name"]
    if kinds.tasks[task].facts["accepts"] != "documents":
        raise UserError(
            f"{run.folder} has task={task}, and the mean of probabilities is scored on documents\n"
            "    try: runs with task=pretrain"
        )


def _refuse_other_tokenizers(first: "RunFolder", run: "RunFolder") -> None:
    """Raise UserError if an id does not mean the same text in both runs."""
    ours, theirs = first.tokenizer, run.tokenizer
    if type(ours) is not type(theirs) or ours.state() != theirs.state():
        raise UserError(
            f"{run.folder} has another tokenizer than {first.folder}, so their probabilities are not of the same "
            f"tokens\n    try: ablatio evaluate {shell_word(first.folder)}"
        )
