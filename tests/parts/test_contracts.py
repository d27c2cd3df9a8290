"""Contract suites for every registered part, built in or of an installed plugin; new parts need no changes here."""

import pytest
import torch

from ablatio.testing import contract_tests

PROCESSES = ("test_launcher_", "test_strategy_", "test_common_import_")  # they start clusters or Python processes

globals().update(
    {
        name: pytest.mark.slow(pytest.mark.matrix(test)) if name.startswith(PROCESSES) else test
        for name, test in contract_tests().items()
    }
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
