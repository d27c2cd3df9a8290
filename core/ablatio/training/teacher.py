"""Teacher of a distillation run: load it from a run folder, and check on resume that it is the same."""

from pathlib import Path
from typing import Any

from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.training.prepare import PreparedRun
from ablatio.training.restore import restore_model
from ablatio.training.run_folder import read_run, refuse_living

Mark = dict[str, Any]  # {"run": id, "step": step}: identifies the weights of a teacher


def load_teacher(folder: Path, run: PreparedRun) -> tuple[LanguageModel, Mark]:
    """Load the model of the newest valid checkpoint in `folder`, and the Mark that identifies it.

    Config and weights are checked as for any run.  Raises UserError if tokenizer or vocabulary differ from those of
    `run`.
    """
    refuse_living(folder, "objective.teacher")
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
            f"the teacher in {folder} has {model.vocab_size} token ids and this model {run.model.vocab_size}\n"
            f"    try: model.vocab_size={max(model.vocab_size, run.model.vocab_size)} in both"
        )
    return model, {"run": found.id, "step": found.step}


def attach_teacher(run: PreparedRun, recorded: Mark | None) -> Mark | None:
    """Pass the teacher's model to the objective, if it needs one, and return its Mark; else None.

    recorded  Mark of the teacher with which the run began; None for a new run

    Raises UserError if a resumed run would get another teacher.
    """
    objective = run.task.objective
    folder = getattr(objective, "teacher", None)
    if folder is None:
        return None
    model, mark = load_teacher(Path(folder).expanduser(), run)
    if recorded is not None and recorded != mark:
        raise UserError(
            f"the teacher in {folder} is at step {mark['step']} of run {mark['run']}; this run began with step "
            f"{recorded['step']} of run {recorded['run']}\n    try: a new run, with another name="
        )
    if context := getattr(objective, "context", ""):
        objective.take_context(list(map(int, run.tokenizer.encode([context])[0])))
    objective.learn_from(model)
    return mark
