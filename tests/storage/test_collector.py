"""The command line collects garbage seldom while it imports; training collects it, and a library's user decides."""

import json
import subprocess
import sys

OURS = """
import gc, json, sys
import ablatio.cli.main as cli
import ablatio.storage.collector as collector
usual = gc.get_threshold()
collector.collect_in_training()
as_library = gc.get_threshold(), gc.get_freeze_count()
cli.main(["--version"])
importing = gc.get_threshold()
collector.collect_in_training()
frozen = gc.get_freeze_count()
made = [[] for _ in range(10)]
collector.collect_in_training()  # a second run of the same process: what the first one made is not kept for ever
print(json.dumps([usual, *as_library, importing, gc.get_threshold(), frozen > 1000, gc.get_freeze_count() <= frozen]))
"""


def test_thresholds() -> None:
    done = subprocess.run([sys.executable, "-c", OURS], capture_output=True, text=True, check=True)
    usual, library, frozen, importing, training, *held = json.loads(done.stdout.splitlines()[-1])
    assert library == usual and frozen == 0
    assert importing[0] > 5 * training[0] > 5 * usual[0] and held == [True, True]
