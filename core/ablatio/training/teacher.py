"""A finished run as the teacher of another one: read like any run, and the same one after a resume."""

from pathlib import Path
from typing import Any

from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.training.prepare import PreparedRun
from ablatio.training.restore import restore_model
from ablatio.training.run_folder import read_run

Mark = dict[str, Any]  # names the weights of a teacher


def load_teacher(folder: Path, run: PreparedRun) -> tuple[LanguageModel, Mark]:
    """The model of the newest valid checkpoint in `folder`, and what names it; UserError where it cannot teach `run`.

    The folder's config is checked as that of any run, and its weights against their digests.
    """
    found = restore_model(folder)
    model, ours = found.model, run.config["tokenizer"]["name"]
    if found.tokenizer.state() != run.tokenizer.state():
        theirs = read_run(folder)["tokenizer"]["name"]
        raise UserError(
            f"the teacher in {folder} reads other tokens than this run: tokenizer={theirs} there and {ours} here, or "
            "trained on another text\n    try: the teacher's own source and tokenizer"
        )
    if model.vocab_size != run.model.vocab_size:
        raise UserError(
            f"the teacher in {folder} knows {model.vocab_size} ids and this model {run.model.vocab_size}\n"
            f"    try: model.vocab_size={max(model.vocab_size, run.model.vocab_size)} in both"
        )
    return model, {"run": found.id, "step": found.step}


def attach_teacher(run: PreparedRun, recorded: Mark | None) -> Mark | None:
    """Hand the objective its teacher, if it asks for one; `recorded`: whom the run had before it was interrupted."""
    objective = run.task.objective
    asked = getattr(objective, "teacher", None)
    if asked is None:
        return None
    model, mark = load_teacher(Path(asked).expanduser(), run)
    if recorded is not None and recorded != mark:
        raise UserError(
            f"the teacher in {asked} is at step {mark['step']} of run {mark['run']}; this run began with step "
            f"{recorded['step']} of run {recorded['run']}\n    try: a run of its own, under another name"
        )
    objective.learn_from(model)
    return mark
