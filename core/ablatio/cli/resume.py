"""`ablatio resume FOLDER`: continue an interrupted sweep or run."""

from pathlib import Path

from ablatio.errors import UserError

USAGE = """\
ablatio resume FOLDER [SETTING=VALUE ...]

Sweep: executes the runs that are not done; interrupted runs continue from their last checkpoint.
  retry=failed       also run failed runs again, or only one kind of failure: diverged, crash, killed, timeout, hung,
                     environment, user
  retry=running      also run again what is recorded as running on a machine that cannot be reached from here
  join=true          share the work with a sweep that is already running in this folder
  workers=4 timeout=3600 hang=600 launcher=ray launcher.KNOB=VALUE    how the runs are executed

Run: continues from its last checkpoint; trainer.* may be changed."""


def run(arguments: list[str]) -> int:
    """Run `ablatio resume` and return its exit code."""
    # The path of a folder may contain `=`, as a setting does.
    folders = [a for a in arguments if not a.startswith("-") and ("=" not in a or Path(a).is_dir())]
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    if len(folders) != 1:
        raise UserError(f"expected one folder, got {len(folders)}\n    try: ablatio resume runs/NAME")
    folder, settings = Path(folders[0]), [a for a in arguments if a != folders[0]]
    from ablatio.sweep.study import STUDY

    if (folder / STUDY).exists():
        from ablatio.api.studies import resume_study

        resume_study(folder, *settings)
        return 0
    from ablatio.cli.train import run as train

    return train([f"resume={folder}", *settings])
