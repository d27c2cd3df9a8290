"""Slurm's queue: which of the study's jobs have left it, and why others do not start.

`squeue` asks the controller itself.  `sacct` would need an accounting database, which many clusters lack; there a job
that ended without a result would be waited for without end.
"""

import logging
import os
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping

INTERVAL = 30.0  # seconds between questions to Slurm: each costs its controller time
SHORT_INTERVAL = 2.0  # while the sweep ends and waits for the last jobs
MISSES = 2  # answers in a row without a job until it counts as gone: its result may still come over a shared disk
PATIENCE = 60.0  # seconds to wait for an answer
COMMAND = ("squeue", "--noheader", "--array", "--format=%i|%T|%r")
# Reasons for which jobs wait in a queue that works.
USUAL = {"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency", "Prolog", "Cleaning"}
SHOW = "sinfo --format='%R %l %c %m %G', which shows the time limit, cores, memory and GPUs of each partition"
ADVICE = {"PartitionTimeLimit": f"; launcher.time is more than the partition allows\n    try: {SHOW}"}  # by reason

log = logging.getLogger(__name__)


class SlurmQueue:
    """State of the submitted jobs in Slurm's queue; Slurm is asked at most once in `interval` seconds."""

    def __init__(self) -> None:
        self.interval = INTERVAL
        self.asked = float("-inf")  # time of the last question, on the clock of time.monotonic()
        self.misses: Counter[str] = Counter()  # by Slurm's number of the job
        self.said: set[str] = set()  # reasons that were reported

    def update(self, runs: Mapping[str, str]) -> None:
        """Ask Slurm about jobs, if it is time to.

        Args:
            runs: Slurm's number of each job -> the run that it executes
        """
        if not runs or time.monotonic() < self.asked + self.interval:
            return
        listed = self._listed()
        self.asked = time.monotonic()
        if listed is None:
            return
        self.misses = Counter({job: self.misses[job] + 1 for job in runs if job not in listed})
        self._report_waiting({runs[job]: reason for job, reason in listed.items() if job in runs and reason})

    def has_left(self, job: str) -> bool:
        """True for a job that Slurm no longer lists: it ended, was cancelled or lost its node."""
        return self.misses[job] >= MISSES

    def _listed(self) -> dict[str, str] | None:
        """Reasons why this user's jobs wait, '' for one that runs; None if Slurm gives no answer."""
        command = [*COMMAND, f"--user={os.getuid()}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip()
            self._say("no answer", "squeue gives no answer, the jobs are taken to run on: %s", why)
            return None
        self.said.discard("no answer")
        rows = (line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
        return {job: reason if state == "PENDING" else "" for job, state, reason in rows}

    def _report_waiting(self, waiting: Mapping[str, str]) -> None:
        for reason in sorted(set(waiting.values()) - USUAL):
            runs = [run for run, why in waiting.items() if why == reason]
            self._say(reason, "Slurm does not start %s: %s%s", names_of(runs), reason, ADVICE.get(reason, ""))

    def _say(self, key: str, message: str, *words: object) -> None:
        """Log a warning, once for each key."""
        if key not in self.said:
            self.said.add(key)
            log.warning(message, *words)


def names_of(runs: Collection[str]) -> str:
    """`run a`, or `3 runs, a among them`."""
    first = next(iter(runs))
    return f"run {first}" if len(runs) == 1 else f"{len(runs)} runs, {first} among them"
