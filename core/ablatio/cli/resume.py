"""`ablatio resume FOLDER`: go on with a sweep or a run that was interrupted."""

from pathlib import Path

from ablatio.errors import UserError

USAGE = """\
ablatio resume FOLDER [SETTING=VALUE ...]

A sweep: runs what is not done, each interrupted run from its last checkpoint.
  retry=failed       failed runs too; or one kind of failure: diverged, crash, killed, timeout, hung, environment, user
  retry=running      also what is said to run on a machine that cannot be asked from here
  join=true          share the work with a sweep that is at this folder already
  workers=4 timeout=3600 hang=600 launcher=ray launcher.KNOB=VALUE    how the runs are executed

A run: goes on from its last checkpoint; trainer.* may be changed."""


def run(arguments: list[str]) -> int:
    folders = [a for a in arguments if "=" not in a and not a.startswith("-")]
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    if len(folders) != 1:
        raise UserError(f"{len(folders)} folders came, one was expected\n    try: ablatio resume runs/NAME")
    folder, settings = Path(folders[0]), [a for a in arguments if a != folders[0]]
    from ablatio.sweep.study import STUDY

    if (folder / STUDY).exists():
        from ablatio.api.studies import resume_study

        resume_study(folder, *settings)
        return 0
    from ablatio.cli.train import run as train

    return train([f"resume={folder}", *settings])
