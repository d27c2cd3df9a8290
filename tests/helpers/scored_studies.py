"""Study folders from given scores: what each run came to, what it was given, and which text and tokenizer it had."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatio.sweep.study import JOBS, Axis, Job, Study, run_folder, write_job

TRAIN_TOKENS, TRAIN_BYTES = 1_000_000, 3_000_000


@dataclass
class Given:
    """What an arm was given, and what its tokenizer and text are."""

    parameters: int = 1_000_000
    steps: int = 100
    batch_size: int = 4
    length: int = 64
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    train_tokens: int = TRAIN_TOKENS
    text: str = "ab" * 32
    seconds: float = 60.0
    lr: float = 0.003

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size * self.length


@dataclass
class Scored:
    """A study of one axis.

    scores  value of the axis -> seed -> final loss in nats, or the state of a run without one
    given   value of the axis -> what its runs were given
    bpb     False: the runs have no score in bits per byte
    trials  value of the axis -> learning rates that were tried for it; tuned: value -> the best of them
    """

    scores: Mapping[str, Mapping[int, float | str]]
    axis: str = "norm"
    baseline: str | None = None
    given: Mapping[str, Given] = field(default_factory=dict)
    bpb: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tuned: Mapping[str, float] = field(default_factory=dict)


def write_scored(folder: Path, study: Scored) -> Path:
    """Write study.json, jobs/, and the runs with config.json, manifest.json and summary.json."""
    (folder / JOBS).mkdir(parents=True)
    seeds = sorted({s for of in study.scores.values() for s in of})
    tuned = {f"{study.axis}={v}": {"optimizer.lr": f"{rate:g}"} for v, rate in study.tuned.items()}
    Study(
        folder.name, axes=[Axis(study.axis, tuple(study.scores))], seeds=seeds, settings=dict(study.settings),
        baseline={study.axis: study.baseline} if study.baseline else None, tuned=tuned,
    ).write(folder)  # fmt: skip
    for value, of in study.scores.items():
        given = study.given.get(value, Given())
        for seed, score in of.items():
            _run(folder, study, value, seed, given, score)
        for rate in study.trials.get(value, ()):
            _run(folder, study, value, 99, Given(**{**vars(given), "lr": rate}), 3.0, role="trial")
    return folder


def _run(
    folder: Path, study: Scored, value: str, seed: int, given: Given, score: float | str, role: Any = "run"
) -> None:
    arm = {study.axis: value}
    name = f"{study.axis}-{value}-{seed}-{role}-{given.lr:g}".replace(".", "_")
    config = {
        "seed": seed, "tokenizer": {"name": given.tokenizer, "vocab_size": given.vocab_size},
        "train": {"steps": given.steps, "batch_size": given.batch_size, "accumulate": 1},
        "data": {"length": given.length}, "optimizer": {"name": "adamw", "lr": given.lr},
    }  # fmt: skip
    write_job(folder, Job(name, arm, seed, (f"{study.axis}={value}", f"seed={seed}"), config, role))
    if score == "planned":
        return
    run = run_folder(folder, name)
    run.mkdir(parents=True)
    manifest = {
        "size": {"parameters": given.parameters, "vocab_size": given.vocab_size, "flops_per_token": 2e6},
        "data": {"fingerprint": given.text, "train": {"tokens": given.train_tokens, "bytes": TRAIN_BYTES}},
    }
    (run / "config.json").write_text(json.dumps(config))
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = not isinstance(score, str)
    summary: dict[str, Any] = {
        "status": "done" if done else score, "score": {"name": "val/loss", "better": "lower"}, "steps": given.steps,
        "tokens": given.tokens, "seconds": given.seconds, "parameters": given.parameters,
        "train_flops": 6.0 * given.parameters * given.tokens,
    }  # fmt: skip
    if done:
        summary["val/loss"] = score
        if study.bpb:  # nats per token to bits per byte of the same text
            summary["val/bpb"] = score / 0.6931471805599453 * given.train_tokens / TRAIN_BYTES
    (run / "summary.json").write_text(json.dumps(summary))
