"""Speed on one card, run by gpu.sh: training step, attention kernels, generation, runs that share the card.

    python benchmarks/gpu_speed.py step|attention|generation|shared --out FILE [--tiny]

step        tokens/s and share of peak FLOPs (MFU) of GPT-2 at 124 M in bfloat16, eager and compiled, per block of
            logits, against transformers
attention   milliseconds, forward and backward, of each mask, bias and bound by FlexAttention and by the other kernels
generation  tokens/s of sampled rollouts, by CUDA graphs and without
shared      seconds of a sweep of eight runs on the card, against one after the other

--tiny takes the CPU for the device and sizes of a few thousand weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ablatio.config import schema
from ablatio.model import cross_entropy, flex_attention
from ablatio.model.attention.kernels import AttentionView, attend, attend_by_steps, kernel_for
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.cost.flops import cost_of
from ablatio.model.decoding import token_steps
from ablatio.model.decoding.rollout import sample_rollouts, streams
from ablatio.model.example import Example
from ablatio.registry.discovery import load
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}  # FLOP/s in bfloat16, dense
SIZES = {"d_model": 768, "n_layers": 12, "n_heads": 12, "max_len": 1024}
TINY = {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_len": 64}


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("step", "attention", "generation", "shared"))
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tiny", action="store_true")
    given = options.parse_args()
    load()
    device = "cpu" if given.tiny else "cuda"
    card = "cpu" if given.tiny else torch.cuda.get_device_name()
    measured: dict[str, Any] = {"step": steps, "attention": attention, "generation": generation, "shared": shared}
    found = measured[given.what](device, given.tiny)
    given.out.write_text(json.dumps({"card": card, "torch": torch.__version__, "rows": found}, indent=1))
    for row in found:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )
    return 0


def seconds(work: Callable[[], Any], device: str, times: int) -> float:
    """Median seconds of `work`, after a warm-up."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def model_config(tiny: bool, **parts: str) -> dict[str, Any]:
    config = tiny_models.config(**(TINY if tiny else SIZES))
    for kind, name in {"norm": "layernorm", "activation": "gelu", "position": "learned", **parts}.items():
        config[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    config["model"] |= {"bias": True}
    return schema.cast(config)


def steps(device: str, tiny: bool) -> list[dict[str, Any]]:
    """A training step: forward, backward, clip and fused AdamW on packed rows."""
    rows, length, vocab = (4, 64, 257) if tiny else (32, 1024, 50304)
    times, config = (2 if tiny else 8), model_config(tiny)
    tokens = torch.randint(1, vocab, (rows, length + 1), device=device)
    batch = Example(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    flops = cost_of(config, vocab).train * rows * length
    peak = next((f for name, f in PEAK.items() if device == "cuda" and name in torch.cuda.get_device_name()), None)
    found = []

    def measure(name: str, loss_of: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def step() -> None:
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()

        took = seconds(step, device, times)
        found.append({"step": name, "ms": 1e3 * took, "tokens/s": rows * length / took})
        if peak:
            found[-1]["MFU"] = flops / took / peak

    usual = cross_entropy.GPU_BLOCK_LOGITS
    for compiled in (False, True):
        net = build_model(config, vocab).to(device).train()
        if compiled:
            net.compile_layers()
        blocks = (usual,) if compiled or tiny else (2**23, 2**25, usual, 2**28)
        for block in blocks:
            cross_entropy.GPU_BLOCK_LOGITS = block
            at_once = cross_entropy.block_rows(vocab, batch.inputs.device)
            name = f"ours{', compiled' if compiled else ''}, blocks of {at_once}"
            measure(name, lambda net=net: net.loss(batch).total / (rows * length), list(net.parameters()))
        cross_entropy.GPU_BLOCK_LOGITS = usual
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return found
    sizes = TINY if tiny else SIZES
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, n_positions=length, n_embd=sizes["d_model"], n_layer=sizes["n_layers"],
                   n_head=sizes["n_heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ).to(device).train()  # fmt: skip
    measure(
        "transformers GPT2", lambda: theirs(input_ids=batch.inputs, labels=batch.inputs).loss, list(theirs.parameters())
    )
    return found


def attention(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Softmax attention alone, in bfloat16: each case with FlexAttention where it is chosen, and without it."""
    found = []
    heads, width, rows = (2, 16, 2) if tiny else (12, 64, 8)
    for length in (64,) if tiny else (1024, 4096):
        tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        documents = torch.arange(length, device=device).div(length // 4, rounding_mode="floor").expand(rows, -1)
        alibi = REGISTRIES["position"].build(
            "alibi", {}, d_model=heads * width, d_head=width, n_heads=heads, n_layers=2, max_len=length, causal=True
        ).to(device)  # fmt: skip
        cases: dict[str, dict[str, Any]] = {
            "causal": {}, "documents": {"segments": documents}, "window": {"window": length // 8},
            "alibi": {"position": alibi}, "alibi, documents": {"position": alibi, "segments": documents},
            "softcap": {"softcap": 50.0}, "sinks": {"sinks": torch.zeros(heads, device=device, requires_grad=True)},
        }  # fmt: skip
        for name, case in cases.items():
            q, k, v = (
                torch.randn(rows, heads, length, width, device=device, dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )
            for allowed in (True, False):
                flex_attention.allow(allowed)
                kernel = attend_case(tokens, (q, k, v), case)[1]
                if allowed or found[-1]["kernel"] == "flex":
                    took = seconds(
                        lambda x=(q, k, v), c=case, t=tokens: attend_case(t, x, c), device, 2 if tiny else 10
                    )
                    found.append({"mask": name, "length": length, "kernel": kernel, "ms": 1e3 * took})
    flex_attention.allow(False)
    return found


def attend_case(tokens: torch.Tensor, x: Any, case: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """Forward and backward pass of one case: (output, kernel); context and mask are made anew, as in each step."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        ctx: Any = make_context(tokens, case.get("position"), "causal", case.get("segments"), None, torch.bfloat16)
        if window := case.get("window"):
            near = (ctx.q_pos[:, None] - ctx.k_pos[None]).abs() < window
            ctx = AttentionView.of(ctx, near, window)
        bounds = {name: case[name] for name in ("softcap", "sinks") if name in case}
        kernel = kernel_for(*x, ctx, bounded=bool(bounds))
        y = attend_by_steps(*x, ctx, scale=x[0].shape[-1] ** -0.5, **bounds) if bounds else attend(*x, ctx)
        y.sum().backward()
    return y.detach(), kernel


def generation(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Sampled answers from a cache, as in a rollout; a CPU has no graphs, and repeats the same there."""
    vocab, count, new = (257, 4, 8) if tiny else (50304, 64, 128)
    net = build_model(model_config(tiny, position="rope"), vocab).to(device).eval()
    prompts = [list(range(1, 17)) for _ in range(count)]
    draws = streams(0, 0, count, new)
    found = []
    for graphs in (True, False):
        token_steps.allow(graphs)
        with torch.autocast(device, dtype=torch.bfloat16):
            took = seconds(lambda: sample_rollouts(net, prompts, draws, stop=0, new_tokens=new), device, 2)
        found.append({"graphs": graphs, "rows": count, "tokens": new, "tokens/s": count * new / took})
    token_steps.allow(False)
    return found


def shared(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Eight small runs at a time on the card, and one after the other."""
    seeds = "seed=1,2" if tiny else "seed=1,2,3,4,5,6,7,8"
    sizes = ["model.d_model=64", "model.n_layers=2", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes",
             "train.steps=5" if tiny else "train.steps=300", "data.val_tokens=512", "train.val_every=null"]  # fmt: skip
    found = []
    for workers in (1, 2 if tiny else 8):
        with tempfile.TemporaryDirectory() as out:
            command = ["train", "-m", seeds, *sizes, f"workers={workers}", f"trainer.device={device}", f"out={out}"]
            start = time.perf_counter()
            ran = subprocess.run(
                [sys.executable, "-m", "ablatio", *command], capture_output=True, text=True, check=False
            )
            took = time.perf_counter() - start
            found.append({"workers": workers, "seconds": took, "exit": ran.returncode})
    return found


if __name__ == "__main__":
    sys.exit(main())
