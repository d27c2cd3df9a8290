"""The model that a run began with, where its task looks back at it: a resumed run must find the same one.

A preference method compares with its reference, and a policy pays for leaving it.  The reference is not kept in
checkpoints, where it would double them: it is taken once more from where the model came from, and its digest checked.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio.errors import UserError
from ablatio.training.prepare import PreparedRun, needs_start


def refuse_a_lost_one(config: Mapping[str, Any], folder: Path) -> None:
    """UserError where the model is gone that the run in `folder` began with and still compares with."""
    from ablatio.config.inherit import folder_of

    if config["model"]["start"] == "scratch" or not needs_start(config):
        return
    path = config["model"]["path"]
    try:
        folder_of(path)
    except UserError as error:
        came = str(error).splitlines()[0]
        raise UserError(
            f"{folder} goes on from a checkpoint, and task={config['task']['name']} needs its reference, the model in "
            f"{path} that the run began with: {came}\n    try: ablatio train resume={folder}, when it is back"
        ) from None


def digest_of(run: PreparedRun) -> str:
    """sha256 of the weights that came from another model; empty where the task does not look back at them."""
    if run.origin is None or not needs_start(run.config):
        return ""
    total, weights = hashlib.sha256(), run.model.state_dict()
    for name in sorted(weights.keys() & run.origin.taken):  # of a quantised one there are codes alone
        total.update(f"{name} {tuple(weights[name].shape)}\n".encode())
        total.update(weights[name].detach().cpu().float().contiguous().numpy().data)
    return total.hexdigest()


def refuse_another(run: PreparedRun, recorded: str, folder: Path) -> None:
    """UserError where the model that the run began with has changed since."""
    if recorded and (came := digest_of(run)) != recorded:
        raise UserError(
            f"{run.config['model']['path']} holds another model than the one that {folder} began with and compares "
            f"with: its weights have the digest {came[:12]}, {recorded[:12]} was expected\n"
            f"    try: ablatio train resume={folder}, when the first one is back; or begin anew with another name="
        )
