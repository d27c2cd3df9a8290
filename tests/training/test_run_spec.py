"""RunSpec: one count of a run's sizes for every command, and one model that is built for a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablatio.config.compose import compose_run
from ablatio.errors import EnvironmentFault
from ablatio.model.builder import ModelBuilder
from ablatio.model.cost import flops, parameters
from ablatio.model.on_meta import meta_copy
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks
from ablatio.registry.registry import ContractError
from ablatio.report.terminal.plan_table import estimate_arms
from ablatio.sweep.plan import plan_sweep
from ablatio.training import estimate
from ablatio.training.initial_weights import start_model
from ablatio.training.prepare import prepare_run
from ablatio.training.run import train
from ablatio.training.run_spec import RunSpec

SIZES = ("model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=300", "data.val_fraction=0.3")
TASKS = {
    "pretrain": ("source=text",),
    "sft": ("source=chats",),
    "preference": ("source=feedback", "alignment=dpo"),
    "reward": ("source=feedback",),
    "policy": ("source=chats", "alignment=grpo", "reward=length", "train.batch_size=8", "task.answer_tokens=8"),
}
TOKENIZERS = {"bytes": ("tokenizer=bytes",), "bpe": ("tokenizer=bpe", "tokenizer.vocab_size=300")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each source."""
    folder = tmp_path_factory.mktemp("sources")
    asked = [f"How many are {i} and {i + 3}?" for i in range(30)]
    chats = [{"prompt": q, "completion": f"There are {len(q)} of them."} for q in asked]
    pairs = [{"prompt": q, "chosen": f"{len(q)}.", "rejected": "No idea!"} for q in asked]
    texts = {
        "chats": "".join(json.dumps(line) + "\n" for line in chats),
        "feedback": "".join(json.dumps(line) + "\n" for line in pairs),
        "text": "\n\n\n".join(" ".join(asked) + f" {i}" for i in range(8)),
    }
    for name, text in texts.items():
        (folder / name).with_suffix(".txt" if name == "text" else ".jsonl").write_text(text)
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.matrix
@pytest.mark.parametrize("template", ["plain", "chatml"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_every_count_of_a_run_is_the_model_s(
    sources: dict[str, Path], task: str, tokenizer: str, template: str
) -> None:
    """`size`, the table of a sweep, the run's specification and its manifest say what the built model has.

    Heads that a task attaches stand beside the model and are not counted.
    """
    path = sources[TASKS[task][0].removeprefix("source=")]
    asked = (
        *SIZES,
        f"task={task}",
        *TASKS[task],
        *TOKENIZERS[tokenizer],
        f"template={template}",
        f"source.path={path}",
    )
    spec = RunSpec(compose_run(asked).config)
    run = prepare_run(spec)
    model, _ = start_model(spec.config, run.tokenizer, 0)
    built = sum(p.numel() for p in model.parameters())
    assert (spec.vocabulary, run.spec.vocabulary) == (run.tokenizer.vocab_size,) * 2
    arms = estimate_arms(plan_sweep([*asked, "seed=1,2", "table=1"]).cells, {})
    counts = {
        "size": estimate.estimate(spec)["parameters"],
        "sweep": arms[0].parameters,
        "manifest": run.spec.size.parameters,
        "alone": RunSpec(spec.config).parameters,
    }
    assert counts == dict.fromkeys(counts, built)


def test_special_tokens_of_a_template_are_counted(sources: dict[str, Path]) -> None:
    """Two tokens of chatml, each with a row of the embedding."""
    asked = (*SIZES, "task=sft", "source=chats", "tokenizer=bytes", f"source.path={sources['chats']}")
    plain, chatml = (RunSpec(compose_run([*asked, f"template={t}"]).config) for t in ("plain", "chatml"))
    assert (plain.vocabulary, chatml.vocabulary) == (257, 259)
    assert chatml.parameters - plain.parameters == 2 * 16


class Built:
    """Counts the models that are built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, make = 0, ModelBuilder.model

        def counted(builder: ModelBuilder) -> Any:
            self.count += 1
            return make(builder)

        monkeypatch.setattr(ModelBuilder, "model", counted)
        for module, name in ((parameters, "_SIZES"), (parameters, "_PARAMETERS"), (flops, "_COSTS")):
            monkeypatch.setattr(module, name, {})


@pytest.mark.parametrize("more", [(), ("peft=lora",)])
def test_a_run_builds_its_model_once(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Memory, size and FLOPs are counted on the model that trains; they are those of a model built for them."""
    asked = (*SIZES, "source=text", "tokenizer=bytes", f"source.path={sources['text']}", "train.steps=2", *more)
    composed = compose_run([*asked, "model.max_len=32", "trainer.progress=false", "trainer.threads=1"])
    built = Built(monkeypatch)
    spec = RunSpec(composed.config, composed.public)
    summary = train(spec, tmp_path, Console(quiet=True))
    assert built.count == 1
    for known in (parameters._SIZES, flops._COSTS):
        known.clear()
    anew = RunSpec(composed.config)
    assert anew.size.parameters == summary["parameters"]
    assert anew.cost().train * summary["tokens"] == pytest.approx(summary["train_flops"], rel=1e-12)
    assert built.count > 1


def test_a_copy_on_meta_shares_what_the_model_shares() -> None:
    config = compose_run([*SIZES, "tokenizer=bytes", "position=alibi"]).config
    model = ModelBuilder(config, 257).model()
    copied = meta_copy(model)
    assert all(p.is_meta for p in copied.parameters())
    assert [(n, p.shape) for n, p in copied.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("parameters_at_most", [1_000, 30_000])
def test_a_model_too_large_is_refused_while_it_is_built(
    sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch, parameters_at_most: int
) -> None:
    """Where the sizes alone do not tell: experts make the layers larger than plain ones."""
    asked = (*SIZES, "source=text", "tokenizer=bytes", f"source.path={sources['text']}", "mlp=moe", "mlp.experts=16")
    spec = RunSpec(compose_run(asked).config)
    monkeypatch.setattr(estimate, "memory_here", lambda trainer: 16 * parameters_at_most)
    assert spec.parameters > 30_000
    with pytest.raises(EnvironmentFault, match=r"this model has(.|\n)*size=small"):
        prepare_run(spec)
    monkeypatch.setattr(estimate, "memory_here", lambda trainer: 20 * spec.parameters)  # enough, and near the limit
    assert sum(p.numel() for p in prepare_run(spec).model.parameters()) == spec.parameters


def test_a_task_without_the_hooks_is_refused() -> None:
    """The error names the class that has them."""

    class Bare:
        """A task that inherits nothing."""

        def __init__(self, setup: Any) -> None:
            """Keep nothing."""

        validation = tokens = example = loss = score = __init__

    class Half(Task):
        """A task that leaves a required method out."""

        def __init__(self, setup: Any) -> None:
            """Keep nothing."""

    with pytest.raises(ContractError, match=r"needs the method `attach`; inherit from ablatio\.model\.task\.Task"):
        tasks.register("bare_task")(Bare)
    with pytest.raises(ContractError, match="needs the method `validation`"):
        tasks.register("half_task")(Half)
    assert "bare_task" not in tasks.entries
