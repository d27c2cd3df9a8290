"""Checks on one card, run by gpu.sh: a GPU gives the CPU's numbers, and a step waits for nothing.

    python benchmarks/gpu_correct.py parts|kernels|graphs|runs --out FILE [--tiny]

kernels  FlexAttention against the other kernels: outputs and gradients of documents, windows, alibi, softcap, sinks
parts  each option of each kind of model part: loss and gradient in float32 against the CPU, in bfloat16 against
       float32, and what makes a step wait for the device (torch.cuda.set_sync_debug_mode)
graphs  decoding by CUDA graphs against decoding without: answers that end early, in float32 and in bfloat16
runs   16 bits with a loss scale, a resume with averages, the ratio before an update, determinism of two equal runs

--tiny takes the CPU for the device and two options of each kind; there, steps are repeated in place of graphs.
"""

import argparse
import contextlib
import csv
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ablatio.model import flex_attention
from ablatio.model.build import build_model
from ablatio.model.decoding import token_steps
from ablatio.model.decoding.cuda_graph import CudaGraph
from ablatio.model.decoding.rollout import sample_rollouts, streams
from ablatio.registry.discovery import load
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models
from ablatio.testing.checks import Unreplayed

FLOAT32, BFLOAT16 = 1e-4, 0.05  # largest relative difference of a loss; of gradients ten times as much
RUN = (
    "model.d_model=64", "model.n_layers=2", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes",
    "data.val_tokens=512", "train.batch_size=8", "train.log_every=1", "train.val_every=null", "train.steps=8",
    "train.checkpoint_every=4", "trainer.progress=false",
)  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("parts", "kernels", "graphs", "runs"))
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tiny", action="store_true")
    given = options.parse_args()
    device = "cpu" if given.tiny else "cuda"
    load()
    checks = {
        "parts": partial(parts, device, given.tiny),
        "kernels": partial(kernels, device),
        "graphs": partial(graphs, device),
        "runs": partial(runs, device),
    }
    found = checks[given.what]()
    card = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    given.out.write_text(json.dumps({"card": card, "torch": torch.__version__, **found}, indent=1))
    for name in found["failed"]:
        print("FAILED", name)
    print(f"{found['checked']} checked, {len(found['failed'])} failed on {card}")
    return 1 if found["failed"] else 0


def parts(device: str, tiny: bool) -> dict[str, Any]:
    """Check each option of the kinds that a model consists of."""
    torch.set_float32_matmul_precision("highest")
    failed, waits, checked = dict[str, str](), dict[str, list[str]](), 0
    until = time.monotonic() + 90
    for registry in REGISTRIES.values():
        if registry.scope != "model":
            continue
        for entry in [*registry][: 2 if tiny else None]:
            if time.monotonic() > until:
                failed["time"] = f"cut off before {registry.kind}={entry.name}"
                return {"checked": checked, "failed": failed, "waits": waits}
            name, checked = f"{registry.kind}={entry.name}", checked + 1
            try:
                if wrong := compare(entry, device):
                    failed[name] = wrong
                if seen := list(waiting(entry, device)):
                    waits[name] = seen
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
    return {"checked": checked, "failed": failed, "waits": waits}


KERNEL_CASES: dict[str, tuple[str, dict[str, Any]]] = {  # position, knobs of the attention
    "documents": ("rope", {}), "alibi": ("alibi", {}), "softcap": ("rope", {"softcap": 5.0}),
    "sinks": ("rope", {"sinks": True}), "all": ("alibi", {"softcap": 5.0, "sinks": True}),
}  # fmt: skip


def kernels(device: str) -> dict[str, Any]:
    """Check whole models on packed rows in float32: loss and gradients with FlexAttention and without it."""
    torch.set_float32_matmul_precision("highest")
    failed, length = dict[str, str](), 768 if device == "cuda" else 64
    for name, (position, knobs) in KERNEL_CASES.items():
        config = tiny_models.config(
            REGISTRIES["attention"]["gqa"], knobs, d_model=256, n_heads=4, n_layers=2, max_len=length
        )
        config["position"] = {"name": position, **REGISTRIES["position"][position].defaults}
        net, row = build_model(config, tiny_models.VOCAB).to(device), tiny_models.example(2, length)
        row.segments = torch.arange(length).div(length // 3, rounding_mode="floor").expand(2, -1).contiguous()
        batch, found = row.to(device), []
        try:
            for allowed in (True, False):
                flex_attention.allow(allowed)
                net.zero_grad()
                tiny_models.mean_loss(net, batch).backward()
                found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        finally:
            flex_attention.allow(False)
        for parameter, gradient in found[1].items():
            gap = float((found[0][parameter] - gradient).norm())
            if gap > 10 * FLOAT32 * float(gradient.norm()) + 1e-7:
                failed[name] = f"the gradient of {parameter} differs by {gap:.3g}"
    return {"checked": len(KERNEL_CASES), "failed": failed}


GRAPH_CASES: dict[str, tuple[str, str]] = {  # attention, position
    "causal": ("mha", "rope"), "groups": ("gqa", "learned"), "bias": ("mha", "alibi"), "latent": ("mla", "rope"),
    "window": ("sliding", "rope"), "linear": ("gla", "none"), "state space": ("mamba2", "none"),
}  # fmt: skip


class Counted:
    """Captures graphs, and counts those that could be captured."""

    def __init__(self, made: Any) -> None:
        self.made, self.captured = made, 0
        self.eager = made.eager

    def __call__(self, step: Any, tokens: torch.Tensor) -> Any:
        graph = self.made(step, tokens)
        self.captured += 1
        return graph


def graphs(device: str) -> dict[str, Any]:
    """Check answers of models with random weights: graphs were captured, and log-probabilities are those without."""
    torch.set_float32_matmul_precision("highest")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ablatio").setLevel(logging.DEBUG)  # says why a model is decoded without graphs
    failed, checked = dict[str, str](), 0
    for name, (attention, position) in GRAPH_CASES.items():
        config = tiny_models.config(REGISTRIES["attention"][attention], d_model=128, n_heads=4, max_len=128)
        config["position"] = {"name": position, **REGISTRIES["position"][position].defaults}
        net = build_model(config, tiny_models.VOCAB).to(device).eval()
        for p in net.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
        for dtype in (None, torch.bfloat16):
            case, checked = name if dtype is None else f"{name} in bfloat16", checked + 1
            print(case, flush=True)
            try:
                if wrong := differs(net, device, dtype):
                    failed[case] = wrong
            except Exception as error:
                failed[case] = f"{type(error).__name__}: {error}"
    return {"checked": checked, "failed": failed}


def differs(net: Any, device: str, dtype: torch.dtype | None) -> str:
    """Why answers by graphs are others than those without; "" if they are not."""
    prompts, draws, found = [[1, 2, 3], [4, 5], [6], [7, 8]], streams(0, 0, 32, 64), []
    counted = Counted(CudaGraph if device == "cuda" else Unreplayed())
    for made in (counted, None):
        with (
            mock.patch.object(token_steps, "graphs_for", lambda _, made=made: made),
            torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            found.append(sample_rollouts(net, prompts, draws, stop=5, new_tokens=64, group=8).cpu())
    if counted.captured < 2:
        return f"{counted.captured} graphs were captured; expected one for each number of rows"
    width = min(len(x.tokens[0]) for x in found)
    ours, theirs = (x.tokens[:, :width] for x in found)
    same = (ours == theirs).cumprod(1).bool()  # up to the first token that rounding has changed
    gap = float(((found[0].logps[:, :width] - found[1].logps[:, :width]).abs() * same).max())
    alike = float(same.all(1).float().mean())
    if gap > (1e-3 if dtype is None else 0.1) or (dtype is None and alike < 0.9):
        return f"log-probabilities differ by {gap:.3g}, and {alike:.0%} of the answers are the same"
    return ""


def step(entry: Any, device: str, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the small model with this part."""
    net = build_model(tiny_models.config(entry), tiny_models.VOCAB).to(device)
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = tiny_models.mean_loss(net, tiny_models.example().to(device))
    loss.backward()
    return loss.detach().cpu(), {n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None}


def compare(entry: Any, device: str) -> str:
    """Why the device's loss or gradients differ from the CPU's in float32; "" if they do not."""
    torch.manual_seed(0)
    exact = step(entry, "cpu")
    for dtype, most in ((None, FLOAT32), (torch.bfloat16, BFLOAT16)):
        torch.manual_seed(0)
        loss, gradients = step(entry, device, dtype)
        if not torch.isfinite(loss) or abs(loss - exact[0]) > most * abs(exact[0]):
            return f"loss {loss:.6f} in {dtype or 'float32'}, {exact[0]:.6f} on the CPU"
        for name, gradient in gradients.items() if dtype is None else ():
            gap = float((gradient - exact[1][name]).norm())
            if gap > 10 * most * float(exact[1][name].norm()) + 1e-7:
                return f"the gradient of {name} differs by {gap:.3g}"
    return ""


def waiting(entry: Any, device: str) -> Iterator[str]:
    """Lines at which a step waits for the device, after a first step."""
    if device == "cpu":
        return
    net = build_model(tiny_models.config(entry), tiny_models.VOCAB).to(device)
    batch = tiny_models.example().to(device)
    tiny_models.mean_loss(net, batch).backward()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            tiny_models.mean_loss(net, batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in {(w.filename, w.lineno) for w in seen if "synchroniz" in str(w.message)}:
        yield f"{one[0]}:{one[1]}"


def runs(device: str) -> dict[str, Any]:
    """Check whole runs through the command line."""
    checks: dict[str, Callable[[Path, str], str]] = {
        "16 bits": scaled, "resume with averages": resumed, "ratio before an update": ratio, "determinism": twice,
    }  # fmt: skip
    failed = dict[str, str]()
    for name, check in checks.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                if wrong := check(Path(folder), device):
                    failed[name] = wrong
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
    return {"checked": len(checks), "failed": failed}


def train(out: Path, device: str, name: str, *settings: str) -> list[dict[str, str]]:
    """Train a run and return the rows of its metrics."""
    command = ["train", *RUN, f"out={out}", f"name={name}", f"trainer.device={device}", *settings]
    ran = subprocess.run([sys.executable, "-m", "ablatio", *command], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-300:])
    with (out / name / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def scaled(out: Path, device: str) -> str:
    rows = {p: train(out, device, f"in_{p}", f"trainer.precision={p}") for p in ("32", "16")}
    pairs = zip(rows["16"], rows["32"], strict=True)
    gaps = [abs(float(a["train/grad_norm"]) / float(b["train/grad_norm"]) - 1) for a, b in pairs]
    return "" if max(gaps[:2]) < 0.01 else f"gradient norms differ by {max(gaps[:2]):.3g} of their size"


def resumed(out: Path, device: str) -> str:
    train(out, device, "run", "stabilizer=[clip,ema]", "train.steps=4")
    extended = [f"extend={out / 'run'}", "train.steps=8", f"out={out}", "name=more"]
    ran = subprocess.run(
        [sys.executable, "-m", "ablatio", "train", *extended], capture_output=True, text=True, check=False
    )
    return "" if ran.returncode == 0 else ran.stderr[-300:]


def ratio(out: Path, device: str) -> str:
    settings = ("task=policy", "alignment=grpo", "reward=length", "trainer.precision=bf16", "train.steps=2")
    first = train(out, device, "run", *settings)[0]
    kl, one = float(first["train/old_kl"]), float(first["train/ratio"])
    return "" if kl < 1e-9 and abs(one - 1) < 1e-6 else f"before any update the KL is {kl} and the ratio {one}"


def twice(out: Path, device: str) -> str:
    files = []
    for name in ("first", "second"):
        train(out, device, name)
        files.append((out / name / "checkpoints/step-00000008.model.safetensors").read_bytes())
    return "" if files[0] == files[1] else "two equal runs end with different weights"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
