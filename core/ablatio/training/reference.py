"""Reference model of a resumed run: make sure that it is the one the run began with.

A preference method compares the model with its reference, and a policy pays for its divergence from it.  The reference
is not stored in checkpoints, where it would double their size.  It is loaded again from the model's origin, and its
digest is checked.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio.errors import UserError
from ablatio.storage.paths import shell_word
from ablatio.training.prepare import PreparedRun, needs_start


def refuse_a_lost_one(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError if the task of the run in `folder` needs its reference and the folder of the origin is gone."""
    from ablatio.config.inherit import folder_of

    if config["model"]["start"] == "scratch" or not needs_start(config):
        return
    path = config["model"]["path"]
    try:
        folder_of(path)
    except UserError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot resume {folder}: task={config['task']['name']} needs its reference, the model in {path} that "
            f"the run began with: {reason}\n    try: ablatio train resume={shell_word(folder)}, once that model is back"
        ) from None


def digest_of(run: PreparedRun) -> str:
    """SHA-256 of the weights that were copied from the run's origin; empty if the task needs no reference.

    Of quantized weights the model holds codes under other names, so only the others are hashed.
    """
    if run.origin is None or not needs_start(run.config):
        return ""
    total, weights = hashlib.sha256(), run.model.state_dict()
    for name in sorted(weights.keys() & run.origin.taken):
        total.update(f"{name} {tuple(weights[name].shape)}\n".encode())
        total.update(weights[name].detach().cpu().float().contiguous().numpy().data)
    return total.hexdigest()


def refuse_another(run: PreparedRun, recorded: str, folder: Path) -> None:
    """Raise UserError if the origin's weights differ from the digest recorded when the run began."""
    if recorded and (found := digest_of(run)) != recorded:
        raise UserError(
            f"{run.config['model']['path']} holds another model than the one that {folder} began with and uses as its "
            f"reference: its weights have the digest {found[:12]}, {recorded[:12]} was expected\n"
            f"    try: ablatio train resume={shell_word(folder)}, once the first model is back,"
            f" or start a run with another name="
        )
