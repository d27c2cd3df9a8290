"""Synthetic study folders in a sweep's format: plausible losses without training, written in milliseconds."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatio.sweep.study import JOBS, Axis, Job, Refused, Study, run_folder, write_job

STEPS, EVERY, TOKENS = 2000, 10, 2048


@dataclass
class Fake:
    """Specification of a synthetic study.

    effects      {"norm=rmsnorm": -0.02}: main effect of a value on the loss, in nats
    pairs        {("norm=rmsnorm", "position=alibi"): 0.03}: interaction of two values, in nats
    seed_sd      standard deviation of the shift per seed, shared by all arms; noise: that of each run, in nats
    kl           {"alignment.beta=0.1": 3.0}: final KL of a policy from its reference, in nats; see policy_scores
    states       {("norm=none", 2): "diverged"}: states of runs by one value of the arm and the seed (None: all seeds)
    """

    axes: Mapping[str, Sequence[str]]
    seeds: Sequence[int] = (1, 2, 3)
    question: str = "Which part lowers the held-out loss?"
    effects: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[tuple[str, str], float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, str] | None = None
    arms: Sequence[Mapping[str, str]] | None = None
    refused: Sequence[Refused] = ()
    states: Mapping[tuple[str, int | None], str] = field(default_factory=dict)
    design: str = "full"
    aliases: Sequence[str] = ()
    seed_sd: float = 0.02
    noise: float = 0.006
    steps: int = STEPS
    every: int = EVERY
    data: str = "ab" * 32
    tuned: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = ()

    def all_arms(self) -> list[dict[str, str]]:
        if self.arms is not None:
            return [dict(a) for a in self.arms]
        arms: list[dict[str, str]] = [{}]
        for key, values in self.axes.items():
            arms = [a | {key: v} for a in arms for v in values]
        return arms


def write_study(folder: Path, fake: Fake) -> Path:
    """Write the complete folder: study.json, jobs/, runs/."""
    axes = [Axis(k, tuple(v)) for k, v in fake.axes.items()]
    (folder / JOBS).mkdir(parents=True)
    Study(
        folder.name, fake.question, "a difference of some hundredths of a nat", {"name": fake.design}, axes,
        tuple(fake.seeds), fake.baseline, tuple(fake.refused), {"match": "params"}, ("-m",),
        tuned=fake.tuned, aliases=fake.aliases,
    ).write(folder)  # fmt: skip
    for place, arm in enumerate(fake.all_arms()):
        for seed in fake.seeds:
            _write_run(folder, fake, place, arm, seed)
    return folder


def _write_run(folder: Path, fake: Fake, place: int, arm: Mapping[str, str], seed: int) -> None:
    words = tuple(f"{k}={v}" for k, v in arm.items())
    name = f"{random.Random(json.dumps([words, seed])).getrandbits(64):016x}"
    config = _config(arm, seed, fake)
    write_job(folder, Job(name, arm, seed, (*words, f"seed={seed}"), config))
    state = next((s for (w, n), s in fake.states.items() if w in words and n in (None, seed)), "done")
    if state == "planned":
        return
    run = run_folder(folder, name)
    run.mkdir(parents=True)
    rng = random.Random(f"{name}{seed}")
    final = 3.2 + sum(fake.effects.get(w, 0) for w in words)
    final += sum(v for pair, v in fake.pairs.items() if set(pair) <= set(words))
    if "optimizer.lr" in arm:
        final += 0.06 * math.log(float(arm["optimizer.lr"]) / 3e-3) ** 2
    final += random.Random(f"seed {seed}").gauss(0, fake.seed_sd) + rng.gauss(0, fake.noise)
    parameters = 1_200_000 + 9_000 * (place % 5)
    (run / "config.json").write_text(json.dumps(config))
    (run / "manifest.json").write_text(json.dumps(_manifest(name, seed, parameters, fake)))
    last = fake.steps if state == "done" else int(fake.steps * 0.37)
    seconds = _write_metrics(run / "metrics.csv", fake, final, last, rng, 0.01 * (1 + 0.07 * (place % 7)), state)
    distance = next((fake.kl[w] * rng.uniform(0.9, 1.1) for w in words if w in fake.kl), None)
    if distance is not None:
        _add_policy(run / "metrics.csv", fake, distance)
    if state == "running":
        return
    done = state == "done"
    after = {"loss": final, "bpb": final / 2.9, "accuracy": 0.9 - final / 6, "tokens": 131072, "bytes": 455804}
    after |= {f"position/{i}": final + 1.1 / i - 0.25 for i in range(1, 17)}
    summary: dict[str, Any] = {
        "status": state, "val/loss": final if done else None, "val/bpb": after["bpb"] if done else None,
        "val/accuracy": after["accuracy"] if done else None, "after": after if done else None, "steps": last,
        "tokens": last * TOKENS, "seconds": round(seconds, 2), "tokens_per_second": 20000,
        "memory": 310_000_000 + 21_000_000 * (place % 6), "parameters": parameters,
        "non_embedding_parameters": parameters - 260_000,
        "train_flops": 7.1e6 * (1 + 0.004 * (place % 5)) * last * TOKENS,
    }  # fmt: skip
    summary |= policy_scores(distance) if done and distance is not None else {}
    if fake.samples:
        summary["samples"] = list(fake.samples)
    if state == "diverged":
        summary["error"] = (
            f"the run diverged: loss is nan at step {last}; the diverged state was not saved\n    try: a lower rate"
        )
    elif not done:
        summary["error"] = f"it was {state} at step {last}"
    (run / "summary.json").write_text(json.dumps(summary))


def change_result(run: Path, **more: float) -> None:
    """Give a finished run another size or val/loss, in each of its files that says so."""
    summary = json.loads((run / "summary.json").read_text()) | more
    if "val/loss" in more:
        old, rows = summary["after"]["loss"], (run / "metrics.csv").read_text().splitlines()
        last = next(i for i in reversed(range(len(rows))) if rows[i].split(",")[4])
        assert rows[last].split(",")[4] == f"{old:.9g}"
        cells = rows[last].split(",")
        rows[last] = ",".join([*cells[:4], f"{more['val/loss']:.9g}", *cells[5:]])
        (run / "metrics.csv").write_text("\n".join(rows) + "\n")
        summary["after"]["loss"] = more["val/loss"]
    (run / "summary.json").write_text(json.dumps(summary))
    if "parameters" in more:
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["size"]["parameters"] = more["parameters"]
        (run / "manifest.json").write_text(json.dumps(manifest))


def policy_scores(kl: float) -> dict[str, float]:
    """Scores of a policy at this KL: the reward grows with sqrt(KL), the gold reward has a maximum and falls again."""
    reward = 0.2 + 0.4 * math.sqrt(kl)
    return {"val/kl": kl, "val/reward": reward, "val/gold": reward - 0.1 * kl}


def _add_policy(path: Path, fake: Fake, kl: float) -> None:
    """Add the policy's columns to metrics.csv: its KL grows linearly with the steps."""
    header, *lines = path.read_text().splitlines()
    made = [f"{header},val/kl,val/reward,val/gold"]
    for line in lines:
        at, validated = int(line.split(",")[0]), bool(line.split(",")[4])
        found = policy_scores(kl * at / fake.steps).values() if validated else ("", "", "")
        made.append(",".join([line, *map(str, found)]))
    path.write_text("\n".join(made) + "\n")


def _write_metrics(
    path: Path, fake: Fake, final: float, last: int, rng: random.Random, step: float, state: str
) -> float:
    lines = ["step,tokens,train/loss,train/lr,val/loss,val/bpb,val/accuracy,tokens_per_second,seconds,train/grad_norm"]
    clock = 0.0
    for at in range(0, last + 1, fake.every):
        clock += fake.every * step * rng.uniform(0.95, 1.1)
        loss = final + 4.3 * math.exp(-at / (fake.steps / 16)) + 0.9 * (1 - at / fake.steps) ** 1.5
        if state == "diverged":
            loss += 9 * max(0.0, at / last - 0.9)
        if at:
            rate = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * at / fake.steps))
            lines.append(f"{at},{at * TOKENS},{loss + rng.gauss(0, 0.05):.9g},{rate:.9g},,,,20000,{clock:.9g},0.4")
        if at % max(fake.every, fake.steps // 20) == 0:
            shown = final if at == fake.steps else loss + rng.gauss(0, 0.004)
            lines.append(f"{at},{at * TOKENS},,,{shown:.9g},{shown / 2.9:.9g},{0.9 - shown / 6:.9g},,,")
    path.write_text("\n".join(lines) + "\n")
    return clock


def _config(arm: Mapping[str, str], seed: int, fake: Fake) -> dict[str, Any]:
    config: dict[str, Any] = {
        "seed": seed, "match": "params", "name": None, "out": "runs",
        "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "max_len": 128},
        "data": {"length": None, "val_tokens": 131072},
        "train": {"steps": fake.steps, "batch_size": 16},
        "trainer": {"device": "auto", "threads": 1},
        "norm": {"name": "rmsnorm"}, "position": {"name": "rope"}, "activation": {"name": "swiglu"},
        "tokenizer": {"name": "bpe"}, "source": {"name": "sotu"}, "optimizer": {"name": "adamw", "lr": 0.003},
    }  # fmt: skip
    for key, value in arm.items():
        kind, _, knob = key.partition(".")
        section = config.setdefault(kind, {})
        section[knob or "name"] = float(value) if knob == "lr" else value
    return config


def _manifest(name: str, seed: int, parameters: int, fake: Fake) -> dict[str, Any]:
    return {
        "run": name,
        "versions": {"python": "3.11.7", "system": "Linux-6.1-x86_64", "ablatio": "0.1.0", "torch": "2.13.0+cpu"},
        "code": {
            "core": "c3d3" * 16,
            "plugins": {"std (ablatio 0.1.0)": "0fcd" * 16},
            "parts": {"norm/rmsnorm": {"distribution": "ablatio 0.1.0", "sha256": "6d5f" * 16}},
        },
        "data": {"fingerprint": fake.data, "key": "k" * 32, "train": {"documents": 213, "tokens": 2706325}},
        "seeds": {"init": seed, "data": seed, "dropout": seed},
        "size": {
            "parameters": parameters, "embedding": 260_000, "active": parameters, "flops_per_token": 2.4e6,
            "non_embedding": parameters - 260_000, "vocab_size": 2048,
        },
        "machine": {"device": "cpu", "precision": "32", "threads": 1},
    }  # fmt: skip


ACTIVATIONS = Fake(
    axes={"activation": ["gelu", "relu", "silu", "reglu", "geglu", "swiglu"]},
    question="Do gated units beat plain ones at equal parameters?",
    effects={"activation=relu": 0.012, "activation=silu": 0.001, "activation=reglu": -0.012,
             "activation=geglu": -0.019, "activation=swiglu": -0.026},
    baseline={"activation": "gelu"},
    seeds=(1, 2, 3, 4, 5),
)  # fmt: skip
MIXED = Fake(
    axes={"norm": ["rmsnorm", "layernorm", "none"], "position": ["rope", "alibi", "none"]},
    question="Does the norm matter more than the position?",
    effects={"norm=layernorm": 0.009, "norm=none": 0.12, "position=alibi": -0.01, "position=none": 0.11},
    pairs={("norm=none", "position=none"): 0.15},
    baseline={"norm": "rmsnorm", "position": "rope"},
    refused=[
        Refused({"norm": "dyt", "position": "t5"}, "t5 adds a bias to the scores, and dyt | has <none>: 4 + 4 = 8")
    ],
    states={("norm=none", 2): "diverged"},
)
RATES = Fake(
    axes={"optimizer": ["adamw", "lion"], "optimizer.lr": ["0.0003", "0.001", "0.003", "0.01", "0.03"]},
    question="How much does the rate matter for Lion and AdamW?",
    effects={"optimizer=lion": 0.02},
    samples=[
        {"prompt": "How many?", "expected": "2 + 2 = 4\n#### 4", "before": "Many.", "after": "2 + 2 = 4\n#### 4"},
        {"prompt": "How long?", "reward": "0.1 -> 0.4", "before": "", "after": "An hour."},
    ],
)

POLICIES = Fake(
    axes={"alignment": ["ppo", "grpo"], "alignment.beta": ["0.01", "0.1", "1"]},
    question="How far do policies go for their reward?",
    kl={"alignment.beta=0.01": 16.0, "alignment.beta=0.1": 4.0, "alignment.beta=1": 1.0},
)


def plackett_burman(factors: int = 7) -> Fake:
    """Plackett-Burman study: eight arms for up to seven two-level factors, from the cyclic construction."""
    first = [1, 1, 1, -1, 1, -1, -1]
    rows = [[first[(i - shift) % 7] for i in range(7)] for shift in range(7)] + [[-1] * 7]
    keys = ["norm", "position", "activation", "model.tied", "model.bias", "init", "schedule"][:factors]
    values = [("rmsnorm", "layernorm"), ("rope", "alibi"), ("swiglu", "gelu"), ("true", "false"), ("false", "true"),
              ("gpt2", "xavier"), ("cosine", "linear")]  # fmt: skip
    arms = [{k: values[i][sign < 0] for i, (k, sign) in enumerate(zip(keys, row, strict=False))} for row in rows]
    return Fake(
        axes={k: values[i] for i, k in enumerate(keys)},
        arms=arms,
        question="Which of seven choices matter at all?",
        effects={"norm=layernorm": 0.09, "activation=gelu": 0.05, "model.bias=true": 0.006},
        design="plackett_burman",
        aliases=["norm = position x schedule + activation x init", "position = norm x schedule"],
        seeds=(1, 2),
    )
