"""A finished (or interrupted) run, ready to be used."""

from pathlib import Path

from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.prepare import PreparedRun, needs_reference, prepare_run
from ablatio.training.run_folder import CHECKPOINTS, read_run, run_id, with_own_tokenizer


def load_run(folder: Path, step: int | None = None, *, scored: bool = False) -> tuple[PreparedRun, int]:
    """The run in `folder` with the weights of its newest valid checkpoint (or of `step`), in evaluation mode.

    scored: whether its task will be asked for scores, which may need the model as it started
    """
    config = read_run(folder)
    found = Checkpoints(folder / CHECKPOINTS, run=run_id(config)).load(step)
    config["trainer"] = config["trainer"] | {"compile": False, "workers": 0}
    run = prepare_run(with_own_tokenizer(config, folder), fresh=scored and needs_reference(config))
    if scored:
        run.begin()
    run.model.load_state_dict(found.model)
    run.model.to(run.machine.device).eval()
    return run, found.step
