"""A finished or interrupted run with its task, ready to be scored, sampled or exported."""

from dataclasses import replace
from pathlib import Path

from ablatio.training.prepare import PreparedRun, needs_start, prepare_run
from ablatio.training.restore import read_checkpoint


def load_run(folder: Path, step: int | None = None, *, scored: bool = False) -> tuple[PreparedRun, int]:
    """The run in `folder` with the weights of its newest valid checkpoint (or of `step`), in evaluation mode.

    scored: whether its task will be asked for scores, which may need the model as it started
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
