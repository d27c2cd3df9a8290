"""Device setup: oneDNN and allocator settings follow the CPU's capabilities and do not change results."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from ablatio.errors import EnvironmentFault
from ablatio.model.decoding.token_steps import graphs_for
from ablatio.training.device import WIDE, Machine, cores, multiply_with_onednn, onednn_is_faster

EPYC = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": True}


@pytest.fixture
def restore_threads():
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
def test_onednn_is_used_only_where_it_is_faster(monkeypatch, restore_threads, known, faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    Machine("cpu", "32", 1).prepare(WIDE)
    assert onednn_is_faster() == faster
    assert torch.get_float32_matmul_precision() == ("medium" if faster else "highest")


def test_matmul_precision_is_reset_for_a_narrow_model(monkeypatch, restore_threads):
    """A sweep times one arm and forks the runs of others: each must get the matmul backend of a separate run."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: EPYC)
    Machine("cpu", "32", 1).prepare(WIDE)
    Machine("cpu", "32", 1).prepare(WIDE - 1)
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_graphs_are_taken_where_a_run_asks_for_them(restore_threads):
    """Also in a run that was trained before there was the setting."""
    trainer, cuda = {"device": "cpu", "precision": "32", "threads": 1}, torch.device("cuda", 0)
    for setting, taken in (({"cuda_graphs": True}, True), ({}, False)):
        Machine.choose(trainer | setting).prepare(WIDE - 1)
        assert (graphs_for(cuda) is not None) == taken


def test_onednn_is_rejected_if_it_rounds_to_bfloat16(monkeypatch, restore_threads):
    """Simulates a processor whose oneDNN multiplies float32 matrices in bfloat16."""
    exact = torch.Tensor.__matmul__

    def coarse(a, b):
        return exact(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else exact(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", coarse)
    assert not multiply_with_onednn() and torch.get_float32_matmul_precision() == "highest"


def test_matmul_error_is_that_of_float32(restore_threads):
    """On this processor, forward and backward: the error against float64 is that of float32, not bfloat16 (4e-3)."""
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


PAGE_FAULTS_CODE = """
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings concern glibc's allocator")
def test_freed_memory_is_reused_without_page_faults():
    """Ten times 24 MB: 6144 page faults each time if glibc returns the memory, as the environment makes it do here."""

    def faults(prepared):
        code, here = PAGE_FAULTS_CODE.format(prepared=prepared), os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=here)
        return int(ended.stdout)

    assert faults(True) < 6144 < 61_440 <= faults(False)


def test_no_more_threads_than_openmp_starts(monkeypatch):
    """OMP_THREAD_LIMIT bounds the usual number of threads, and a larger one is refused with one that works."""
    trainer = {"device": "cpu", "precision": "32", "threads": None}
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    assert Machine.choose(trainer).threads == cores() == 1
    with pytest.raises(EnvironmentFault, match=r"OMP_THREAD_LIMIT=1.*\n    try: trainer.threads=1$"):
        Machine.choose(trainer | {"threads": 2})
    for without in ("", "many"):
        monkeypatch.setenv("OMP_THREAD_LIMIT", without)
        assert Machine.choose(trainer | {"threads": 2}).threads == 2
