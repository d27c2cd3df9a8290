"""A transaction that is undone leaves listed parts usable."""

import subprocess
import sys

import pytest

FIRST_USE_INSIDE = """
from ablatio.registry.kinds import optimizers
from ablatio.registry.registry import transaction

assert "adamw" in optimizers.names()
try:
    with transaction():
        optimizers.target("adamw")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
print(optimizers.target("adamw").__name__)
"""


@pytest.mark.slow
def test_part_first_used_in_an_undone_transaction_can_still_be_built() -> None:
    """Its module stays imported, so nothing would register it again."""
    done = subprocess.run([sys.executable, "-c", FIRST_USE_INSIDE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
