"""A finished (or interrupted) run, ready to be used."""

from pathlib import Path

from ablatio.checkpoint import Checkpoints
from ablatio.tasks.folder import CHECKPOINTS, read_run, run_id
from ablatio.tasks.prepared import Prepared, prepare_run


def load_run(folder: Path, step: int | None = None) -> tuple[Prepared, int]:
    """The run in `folder` with the weights of its newest valid checkpoint (or of `step`), in evaluation mode."""
    config = read_run(folder)
    found = Checkpoints(folder / CHECKPOINTS, run=run_id(config)).load(step)
    config["trainer"] = config["trainer"] | {"compile": False, "workers": 0}
    if (folder / "tokenizer.json").exists():  # where it came from may be gone
        config["tokenizer"] = {"name": "pretrained", "path": str(folder), "eos": None}
    run = prepare_run(config)
    run.model.load_state_dict(found.model)
    run.model.to(run.machine.device).eval()
    return run, found.step
