"""`ablatio doctor`: show versions, device, folders and plugins, and report each problem with a fix."""

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from ablatio.cli.commands import parser
from ablatio.config import presets, yaml_files
from ablatio.registry import discovery
from ablatio.storage.paths import cache_root, shipped

LOW_SPACE = 1 << 30


def run(arguments: list[str]) -> int:
    """Run `ablatio doctor` and return its exit code: 5 if there are problems."""
    parser("doctor").parse_args(arguments)
    from ablatio.training.provenance import versions

    problems: list[str] = []
    for name, found in versions().items():
        print(f"{name:<12} {found}")
        if found == "not installed":
            problems.append(f"{name} is not installed\n    try: pip install {name}")
    _machine(problems)
    _folder("cache", cache_root(), problems)
    _folder("here", Path.cwd(), problems)
    if not (shipped("conf") / "train.yaml").exists():
        problems.append(
            "conf/train.yaml is missing from the installation\n    try: pip install --force-reinstall ablatio"
        )
    for source in discovery.sources():
        print(f"{'plugin':<12} {source.name} from {source.distribution}")
    problems += [str(f) for f in discovery.failures()]
    problems += broken_files()
    problems += [f"{file}\n    try: mend, rename or remove the file" for file in yaml_files.left_out()]
    for problem in problems:
        print(f"PROBLEM      {problem}", file=sys.stderr)
    print("no problems found" if not problems else f"{len(problems)} problem(s)")
    return 5 if problems else 0


def broken_files() -> list[str]:
    """Options in YAML files that cannot be used; everything else works."""
    found = yaml_files.broken() | {f"{yaml_files.PRESET}/{name}": why for name, why in presets.broken().items()}
    return [f"{name.replace('/', '=')} cannot be used: {why}\n    try: mend the file" for name, why in found.items()]


def _machine(problems: list[str]) -> None:
    import torch

    from ablatio.training.device import Machine, cores

    chosen = Machine.choose({"device": "auto", "precision": "auto", "threads": None})
    name = (
        torch.cuda.get_device_name()
        if chosen.device == "cuda"
        else f"{cores()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"{'device':<12} {chosen.device} ({name}), precision {chosen.precision}, {chosen.threads} threads")
    _several_devices(problems)


def _several_devices(problems: list[str]) -> None:
    """Print what a run on several devices would use: GPUs and NCCL, or processes and gloo; and DeepSpeed."""
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count()
    if not dist.is_available():
        means = "torch has no distributed package: one device per run"
    elif gpus:
        nccl = torch.cuda.nccl.version() if dist.is_nccl_available() else ("missing",)  # type: ignore[no-untyped-call]
        means = f"{gpus} GPUs, NCCL {'.'.join(map(str, nccl))}"
        if gpus > 1 and not dist.is_nccl_available():
            problems.append("this torch has no NCCL, so a run cannot use several GPUs\n    try: pip install torch")
    else:
        means = f"processes on CPU cores, {'with' if dist.is_gloo_available() else 'without'} gloo"
    deepspeed = importlib.util.find_spec("deepspeed") is not None
    zero = f"DeepSpeed {version('deepspeed')}" if deepspeed else "without DeepSpeed (zero1, zero2, zero3)"
    print(f"{'strategies':<12} {means}; {zero}")


def _folder(what: str, folder: Path, problems: list[str]) -> None:
    # The folder itself may not exist before the first run makes it.
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    print(f"{what:<12} {folder} ({free / 2**30:.1f} GiB free)")
    try:
        # A real file, because permission bits say nothing of a read-only mount or a full disk.
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        hint = "export ABLATIO_CACHE=$HOME/ablatio-cache" if what == "cache" else "cd $HOME"
        problems.append(f"{existing} cannot be written: {os.strerror(error.errno or 0)}\n    try: {hint}")
    if free < LOW_SPACE:
        problems.append(f"{existing} has {free / 2**20:.0f} MiB left; a run of the default model writes 25 MiB")
