"""Settings that change during training: exact resume, a hand-written loop, counts, saved runs, refusals."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary
from helpers.small_text import small_text
from rich.console import Console

from ablatio.api.adapter import built
from ablatio.config.compose import compose_run
from ablatio.data.batches import segments
from ablatio.data.order import WindowOrder
from ablatio.errors import ConfigError
from ablatio.model.build import build_model
from ablatio.model.cost.flops import Work
from ablatio.model.example import Example
from ablatio.model.parameter_roles import describe
from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.storage.checkpoints import Checkpoints
from ablatio.testing.other_knob_values import other_values
from ablatio.training.load import load_run
from ablatio.training.restore import restore_model
from ablatio.training.run import train
from ablatio.training.run_spec import RunSpec

STEPS = 12


def run(settings: Sequence[str], folder: Path, *, until: int | None = None, resume: bool = False) -> dict[str, Any]:
    spec = RunSpec(compose_run(settings).config)
    return train(spec, folder, Console(file=io.StringIO()), until=until, resume=resume)


def settings_for(text_file: Path, *more: str) -> list[str]:
    return [*TINY, f"source.path={text_file}", "train.log_every=1", "model.n_layers=2", f"train.steps={STEPS}", *more]


def set_in(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config with other knobs, by their paths."""
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    for path, value in values.items():
        section, knob = path.split(".")
        copy[section][knob] = value
    return copy


def halves_equal(whole: Path, settings: Sequence[str], cut: Path) -> None:
    """Two runs, up to and from step 5, leave the same files as the run `whole`, but for the clock."""
    run(settings, cut, until=5)
    run(settings, cut, until=STEPS, resume=True)
    pause = [row for row in metrics(cut) if row["step"] == "5" and not row["train/loss"]]
    assert len(pause) == 1  # the score at the pause
    assert [row for row in metrics(cut) if row != pause[0]] == metrics(whole)
    last = f"checkpoints/step-{STEPS:08d}.model.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()
    assert summary(cut)["after"] == summary(whole)["after"]
    assert summary(cut)["train_flops"] == summary(whole)["train_flops"]


ROWS = (
    "data.length=stages(8@0,16@0.5)", "train.batch_size=linear(2,6)", "attention=sliding",
    "attention.window=linear(4,16)", "train.accumulate=2", "model.dropout=linear(0,0.3,until=0.5)",
    "optimizer.weight_decay=stages(0.5@0,0@0.6)", "optimizer.betas=linear([0.9,0.9],[0.8,0.99])",
    "train.label_smoothing=cosine(0.2,0)", "stabilizer=[clip,z_loss]", "stabilizer.z_loss.weight=linear(0,0.01)",
    "train.keep=9",
)  # fmt: skip
WEIGHTS = (
    "train.batch_size=linear(2,8,until=500tokens)", "attention.softcap=stages(0@0,20@300tokens)",
    "model.tied=stages(true@0,false@0.55)", "roles.frozen=stages([vector,layers.0]@0,[]@0.6)", "quantization=int8",
    "quantization.qat=true", "quantization.rounding=stages(0@0,1@0.6)",
)  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small learnable text."""
    return small_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run with schedules of many settings."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(settings_for(text_file, *ROWS), folder)
    return folder


def test_two_halves_equal_one_whole(whole: Path, tmp_path: Path, text_file: Path) -> None:
    halves_equal(whole, settings_for(text_file, *ROWS), tmp_path / "cut")


def test_two_halves_equal_one_whole_with_held_and_rounded_weights(tmp_path: Path, text_file: Path) -> None:
    settings = settings_for(text_file, *WEIGHTS)
    run(settings, tmp_path / "whole")
    halves_equal(tmp_path / "whole", settings, tmp_path / "cut")


def test_tokens_flops_and_metrics_are_those_of_each_step(whole: Path, text_file: Path) -> None:
    length, rows = [8] * 6 + [16] * 6, [2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6, 6]
    window = [math.floor(4 + 12 * k / 11 + 0.5) for k in range(STEPS)]
    tokens = [2 * r * t for r, t in zip(rows, length, strict=True)]  # two batches a step
    logged = [row for row in metrics(whole) if row["train/loss"]]
    assert [int(row["tokens"]) for row in logged] == np.cumsum(tokens).tolist()
    for path, values in {"data.length": length, "train.batch_size": rows, "attention.window": window}.items():
        assert [float(row[f"setting/{path}"]) for row in logged] == values
    decay = [float(row["setting/optimizer.weight_decay"]) for row in logged]
    assert decay == [0.5] * 7 + [0.0] * 5 and float(logged[-1]["setting/optimizer.betas.1"]) == 0.99
    flops = 0.0
    constant = compose_run(settings_for(text_file, "attention=sliding")).config
    for t, w, n in zip(length, window, tokens, strict=True):
        config = set_in(constant, {"attention.window": w, "data.length": t})
        flops += RunSpec(config).cost().of(Work.trained(n))
    assert summary(whole)["train_flops"] == pytest.approx(flops, rel=1e-12)
    spec = RunSpec(compose_run(settings_for(text_file, *ROWS)).config)
    assert spec.train_flops == pytest.approx(flops, rel=1e-12)
    assert spec.tokens_per_step == round(sum(tokens) / STEPS) and spec.length == 16
    written = RunSpec(json.loads(json.dumps(spec.written)))  # as a job of a sweep holds it
    assert (written.schedules, written.id, written.train_flops) == (spec.schedules, spec.id, spec.train_flops)


def test_a_checkpoint_has_the_values_of_its_last_step(whole: Path) -> None:
    for step in (4, STEPS):
        found = restore_model(whole, step)
        window, done = math.floor(4 + 12 * (step - 1) / 11 + 0.5), (step - 1) / 11
        assert found.config["attention"]["window"] == window and found.model.model.layers[0].self_attn.window == window
        assert found.config["model"]["dropout"] == pytest.approx(0.3 * min(1, 2 * done))
        assert found.config["data"]["length"] == (8 if step == 4 else 16)
    loaded, _ = load_run(whole)
    score = loaded.score(loaded.task.validation())
    assert score["loss"] == summary(whole)["after"]["loss"]  # the model of the last step


def of_parts() -> list[tuple[PartSpec, tuple[Knob, ...]]]:
    parts = [part for registry in REGISTRIES.values() for part in registry]
    return [(part, found) for part in parts if (found := tuple(k for k in part.knobs if k.schedulable))]


def changing(knob: Knob) -> str:
    """A schedule from the default to another value of the knob."""
    value = 8 if knob.default is None else knob.default
    other = next(v for v in other_values(knob) if v is not None and v != value and not knob.problem(v))
    return f"stages({text(value)}@0,{text(other)}@0.5)"


def text(value: Any) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, list | tuple) else str(value)


@pytest.mark.long
@pytest.mark.matrix
@pytest.mark.parametrize("part, knobs", of_parts(), ids=[f"{p.kind}={p.name}" for p, _ in of_parts()])
def test_two_halves_equal_one_whole_with_each_schedulable_knob(
    tmp_path: Path, text_file: Path, part: PartSpec, knobs: tuple[Knob, ...]
) -> None:
    if part.name == "distillation" or part.kind == "alignment":
        pytest.skip("needs the run of a teacher, or answers")
    if part.kind == "mixture":
        pytest.skip("needs several sources: tests/data/test_mixtures.py")
    multiple = REGISTRIES[part.kind].multiple
    section = f"{part.kind}.{part.name}" if multiple else part.kind
    chosen = [f"{part.kind}=[{part.name}]" if multiple else f"{part.kind}={part.name}"]
    if part.kind == "objective":
        accepting = (a.name for a in REGISTRIES["architecture"] if part.facts["produces"] in a.facts["accepts"])
        chosen += [f"architecture={next(accepting)}"]
    chosen += ["quantization.qat=true"] if part.kind == "quantization" else []
    chosen += ["schedule=constant"] if part.name in ("schedule_free", "prodigy") else []
    settings = settings_for(text_file, *chosen, *(f"{section}.{k.name}={changing(k)}" for k in knobs))
    plain = settings_for(text_file, *chosen)
    if part.name == "prefix_token":  # no byte begins with another
        learned = ("tokenizer=bpe", "tokenizer.vocab_size=300")
        settings, plain = ([*(x for x in given if x != "tokenizer=bytes"), *learned] for given in (settings, plain))
    run(settings, tmp_path / "whole")
    halves_equal(tmp_path / "whole", settings, tmp_path / "cut")
    without = run(plain, tmp_path / "plain")
    assert without["after"] != summary(tmp_path / "whole")["after"], "the schedules change nothing"


@pytest.mark.long
@pytest.mark.matrix
def test_two_halves_equal_one_whole_of_a_preference_run(tmp_path: Path) -> None:
    """The rows of a batch and the weight of the KL change; a pair of answers has no one length."""
    lines = [{"prompt": f"{i} and {j}?", "chosen": "yes!", "rejected": "no"} for i in range(6) for j in range(6)]
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plain = [s for s in TINY if not s.startswith(("source", "model.max_len"))]
    settings = [*plain, "source=feedback", f"source.path={path}", "model.max_len=64", "task=preference"]
    settings += ["alignment=dpo", "alignment.beta=linear(0.1,0.5)", "train.batch_size=linear(2,4)", "train.log_every=1"]
    run(settings, tmp_path / "whole")
    halves_equal(tmp_path / "whole", settings, tmp_path / "cut")
    beta = [float(row["setting/alignment.beta"]) for row in metrics(tmp_path / "whole") if row["train/loss"]]
    assert beta == pytest.approx([0.1 + 0.4 * k / 11 for k in range(STEPS)])


@pytest.mark.long
@pytest.mark.matrix
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, text_file: Path) -> None:
    """The command line, with processes that end: nothing of a schedule lives outside of config and step."""
    settings = [*settings_for(text_file, *ROWS), f"out={tmp_path}"]
    whole = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    cut = cut_and_resumed(settings, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")


def test_a_run_equals_a_hand_written_loop(tmp_path: Path, text_file: Path) -> None:
    """Each step trains a model that is built anew with that step's values, with torch's own AdamW."""
    schedules = [
        "data.length=stages(8@0,16@0.5)", "train.batch_size=linear(2,6)", "attention=sliding",
        "attention.window=linear(2,16)", "attention.softcap=stages(5@0,0@0.75)", "position.base=linear(100,1000)",
        "optimizer.eps=1e-3", "optimizer.weight_decay=linear(0.4,0)", "optimizer.betas=linear([0.9,0.9],[0.8,0.99])",
        "train.label_smoothing=linear(0.2,0,until=0.5)", "stabilizer=[z_loss]",
        "stabilizer.z_loss.weight=linear(0,0.01)",
    ]  # fmt: skip
    settings = settings_for(text_file, *schedules, "schedule=constant", "schedule.warmup=0")
    run(settings, tmp_path / "run")
    found, _ = load_run(tmp_path / "run")
    corpus = found.task.data.corpora[""]
    share = [k / (STEPS - 1) for k in range(STEPS)]
    length = [8 if p < 0.5 else 16 for p in share]
    rows = [math.floor(2 + 4 * p + 0.5) for p in share]
    assert rows == [2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6, 6]

    plain = compose_run(settings_for(text_file, "attention=sliding")).config

    def model_of(k: int) -> Any:
        constants = {
            "attention.window": math.floor(2 + 14 * share[k] + 0.5),
            "attention.softcap": 5 * (share[k] < 0.75),
        }
        constants["position.base"] = 100 + 900 * share[k]
        config = set_in(plain, constants)
        made = build_model(config, corpus_size, corpus.eos, 1).double()
        made.smoothing, made.z_loss = max(0.0, 0.2 - 0.4 * share[k]), 0.01 * share[k]
        return made

    corpus_size = found.task.tokenizer.vocab_size
    held = model_of(0)
    vectors = {info.name for _, info in describe(held) if info.role == "vector"}
    named = dict(held.named_parameters())
    groups = [{"params": [p for name, p in named.items() if (name in vectors) == bare]} for bare in (False, True)]
    optimizer, tokens = torch.optim.AdamW(groups, lr=6e-3, eps=1e-3), 0
    for k in range(STEPS):
        order = WindowOrder(len(corpus.train), length[k], 1)
        first = -(-tokens // length[k])
        starts = order.starts(np.arange(first, first + rows[k]))
        batch = torch.stack([torch.from_numpy(corpus.train[s : s + length[k] + 1].astype(np.int64)) for s in starts])
        documents = segments(batch, corpus.eos)
        model = model_of(k)
        model.load_state_dict(held.state_dict())
        documents = None if documents is None else documents[:, :-1]
        total, count, _ = model.loss(Example(batch[:, :-1], batch[:, 1:], segments=documents))
        (total / count).backward()
        for name, parameter in model.named_parameters():
            named[name].grad = parameter.grad
        for group, decay in zip(optimizer.param_groups, (0.4 - 0.4 * share[k], 0.0), strict=True):
            group["betas"], group["weight_decay"] = (0.9 - 0.1 * share[k], 0.9 + 0.09 * share[k]), decay
        optimizer.step()
        tokens += rows[k] * length[k]
    assert summary(tmp_path / "run")["tokens"] == tokens
    for name, weight in found.model.named_parameters():
        torch.testing.assert_close(weight.double(), named[name].detach(), rtol=1e-4, atol=1e-6)


def tied_run(text_file: Path, folder: Path, tied: str) -> dict[str, torch.Tensor]:
    run(settings_for(text_file, f"model.tied={tied}", "stabilizer=[]", "optimizer.eps=1e-3"), folder)
    return Checkpoints(folder / "checkpoints").load().model


def test_a_head_is_tied_until_it_is_untied(tmp_path: Path, text_file: Path) -> None:
    """Before: the run with a tied head.  After: AdamW with the embedding's moments, and a gradient of its own."""
    both = tied_run(text_file, tmp_path / "tied", "true")
    late = tied_run(text_file, tmp_path / "late", "stages(true@0,false@100steps)")  # never
    for name, weight in both.items():
        torch.testing.assert_close(late[name], weight, rtol=1e-4, atol=1e-6)
    apart = tied_run(text_file, tmp_path / "apart", "stages(true@0,false@11steps)")  # in the last step
    embedding, head = (apart[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    assert not torch.equal(embedding, head)
    # One step apart: they differ by less than two steps of AdamW can move a weight.
    assert float((embedding - head).abs().max()) < 2 * 6e-3


def test_frozen_weights_keep_their_values_and_no_others(tmp_path: Path, text_file: Path) -> None:
    frozen = "roles.frozen=stages([embedding,layers.1]@0,[]@11steps)"
    run(settings_for(text_file, frozen, "train.checkpoint_every=11"), tmp_path / "run")
    store = Checkpoints(tmp_path / "run" / "checkpoints")
    begin = built(compose_run(settings_for(text_file)).config).state_dict()
    before, after = store.load(11).model, store.load(12).model
    for name, weight in begin.items():
        held = name.startswith(("model.embed_tokens", "lm_head", "model.layers.1."))
        assert torch.equal(before[name], weight) == held, name
        assert not torch.equal(after[name], before[name]), name  # thawed for the last step


REFUSED = {
    "optimizer.weight_decay=linear(0.1,-0.2)": "has the value -0.2",
    "optimizer.lr=linear(0.1,0.2)": "those that can: attention.softcap, data.length, model.dropout",
    "attention.softcap=linear(4)": "at least two values",
    "train.batch_size=linear(1,2.5)": "expected int, got 2.5",
    "data.length=linear(8,64) position=learned": "data.length=64 tokens, and position=learned has only",
    "stabilizer=[batch_ramp] train.batch_size=linear(2,8)": "train.batch_size is a schedule",
    "model.tied=stages(false@0,true@0.5)": "can only be untied",
    "roles.frozen=[layers.7]": "there is no `layers.7`",
    "roles.frozen=stages([matrx]@0,[]@0.5)": "there is no `matrx`; did you mean matrix",
    "stabilizer=[spike_rewind] data.length=linear(8,16)": "skips batches, and the rows of a batch with a schedule",
    "task=policy alignment=ppo reward=length train.batch_size=linear(2,4)": "equally many prompts in each step",
    "task=policy alignment=ppo reward=length alignment.kl_coef=linear(0,1) alignment.kl_target=6": "adapts",
    "task=sft source=gsm_symbolic data.length=linear(8,16)": "the rows of task=sft have one length",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_run_is_refused_before_it_starts(text_file: Path, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_run([*settings_for(text_file), *words.split()])
    assert REFUSED[words] in str(error.value)
