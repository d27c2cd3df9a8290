"""Load a saved run together with its task, to score, sample or export it."""

from dataclasses import replace
from pathlib import Path

from ablatio.training.prepare import PreparedRun, needs_start, prepare_run
from ablatio.training.restore import read_checkpoint


def load_run(folder: Path, step: int | None = None, *, scored: bool = False) -> tuple[PreparedRun, int]:
    """Load the run in `folder` in evaluation mode, with the weights of its newest valid checkpoint or of `step`.

    scored  True if scores will be computed, for which the task may need the model that the run began with

    Returns the run and the step of its checkpoint.
    """
    saved = read_checkpoint(folder, step)
    config = saved.spec.config
    spec = replace(saved.spec, config={**config, "trainer": {**config["trainer"], "compile": False, "workers": 0}})
    run = prepare_run(spec, fresh=scored and needs_start(config), counted=False)
    if scored:
        run.begin()
    run.model.load_state_dict(saved.checkpoint.model)
    run.model.to(run.machine.device).eval()
    return run, saved.checkpoint.step
