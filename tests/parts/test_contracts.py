"""Every registered part, ours or an installed plugin's, keeps its kind's contract; a new part needs no line here."""

import pytest
import torch

from ablatio.testing import contract_tests

globals().update(contract_tests())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
