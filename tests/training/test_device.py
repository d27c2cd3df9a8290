"""What the machine does natively is chosen by what it says of itself, and changes no result."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from ablatio.training.device import WIDE, Machine, multiply_with_onednn, onednn_is_faster

EPYC = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True}


@pytest.fixture
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "known, faster",
    [
        (EPYC, True),
        ({**EPYC, "avx512_f": False}, False),
        ({**EPYC, "cpu_name": "Intel(R) Xeon(R)"}, False),
        ({}, False),
    ],
)
def test_onednn_multiplies_where_it_is_faster_and_exact(monkeypatch, as_before, known, faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    Machine("cpu", "32", 1).prepare(WIDE)
    assert onednn_is_faster() == faster
    assert torch.get_float32_matmul_precision() == ("medium" if faster else "highest")


def test_a_narrow_model_has_torch_s_products_also_after_a_wide_one(monkeypatch, as_before):
    """A sweep times one arm for its table, and forks the runs of all: each has the products that it has alone."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: EPYC)
    Machine("cpu", "32", 1).prepare(WIDE)
    Machine("cpu", "32", 1).prepare(WIDE - 1)
    assert torch.get_float32_matmul_precision() == "highest"


def test_onednn_is_not_taken_where_it_rounds(monkeypatch, as_before):
    """A product that is rounded to bfloat16, as one would be on a processor with units for that."""
    exact = torch.Tensor.__matmul__

    def coarse(a, b):
        return exact(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else exact(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", coarse)
    assert not multiply_with_onednn() and torch.get_float32_matmul_precision() == "highest"


def test_products_stay_those_of_float32(as_before):
    """On this very processor, forward and backward: as near to float64 as float32 is, not as bfloat16 (4e-3)."""
    Machine("cpu", "32", 1).prepare(WIDE)
    x, w = (torch.randn(256, 256, requires_grad=True) for _ in range(2))
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    for a, b in ((x, w), tuple(exact)):
        torch.nn.functional.linear(a, b).square().sum().backward()
    for ours, theirs in zip((x, w), exact, strict=True):
        assert (ours.grad.double() - theirs.grad).norm() < 2e-6 * theirs.grad.norm()
    batch = torch.randn(3, 200, 100), torch.randn(3, 100, 300)
    exact_batch = batch[0].double() @ batch[1].double()
    assert ((batch[0] @ batch[1]).double() - exact_batch).norm() < 2e-6 * exact_batch.norm()


FREED = """
import resource, torch
from ablatio.training.device import Machine
if {prepared}:
    Machine("cpu", "32", 1).prepare(64)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    return [torch.ones(1 << 20) for _ in range(6)]  # 4 MB each
for _ in range(3):
    use()
before = faults()
for _ in range(10):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator has other ways")
def test_memory_that_is_freed_is_not_cleared_again():
    """24 MB, ten times: 6144 pages each time where glibc gives them back, as it is told to here."""

    def faults(prepared):
        code, here = FREED.format(prepared=prepared), os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=here)
        return int(ended.stdout)

    assert faults(True) < 6144 < 61_440 <= faults(False)
