"""Epochs, and tokens of rows of varying length: steps are counted on the data that the run reads."""

from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.config.compose import compose_run
from ablatio.errors import UserError
from ablatio.training.budget import settled, smallest
from ablatio.training.prepare import build_task
from ablatio.training.run_spec import RunSpec

SHORT = [word for word in TINY if not word.startswith("train.steps")]


@pytest.mark.parametrize("rows", ["windows", "documents"])
def test_one_epoch_reads_every_window_once(rows: str, text_file: Path) -> None:
    """The oracle reads the batches: the last step of the epoch is the first after which no window is left out."""
    words = [*SHORT, f"source.path={text_file}", f"data.rows={rows}", "train.batch_size=3", "train.epochs=1"]
    spec = settled(RunSpec(compose_run(words).config))
    steps = spec.config["train"]["steps"]
    _, task, _ = build_task(spec)
    order, seen = task.training.order, dict[int, int]()
    for step in range(steps):
        before = len(seen)
        for row in order.rows(*task.setup.plan.batch(step)):
            if row < order.windows:
                seen[int(order.starts(row.reshape(1))[0])] = step
        assert len(seen) > before
    assert len(seen) == order.windows and steps > 3
    assert spec.config["train"]["epochs"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["stabilizer=[batch_ramp]", "stabilizer.batch_ramp.tokens=4000", "train.batch_size=16"],
        ["task=sft", "source=gsm_symbolic", "source.size=20", "model.max_len=512"],
        ["task=sft", "source=gsm_symbolic", "source.size=20", "model.max_len=512", "task.packing=false"],
    ],
)
def test_tokens_are_counted_as_the_task_counts_them(words: list[str]) -> None:
    config = compose_run(["size=tiny", "tokenizer=bytes", *words, "train.tokens=9000"]).config
    spec = settled(RunSpec(config))
    steps = spec.config["train"]["steps"]
    _, task, _ = build_task(spec)
    assert task.tokens(steps - 1) < 9000 <= task.tokens(steps) and steps > 1


@pytest.mark.parametrize(
    "words",
    [
        ["train.batch_size=linear(2,8)"],
        ["train.batch_size=linear(8,2)", "train.accumulate=2"],
        ["train.batch_size=steps(1,2,4)", "data.length=stages(8@0,16@0.9)"],
        ["data.length=stages(8@0,16@60steps)"],
        ["train.batch_size=linear(2,16,until=3000tokens)"],
    ],
)
def test_schedules_are_those_of_a_run_with_the_steps_of_its_budget(words: list[str], text_file: Path) -> None:
    """Places are fractions of the run that the budget comes to: runs with so many steps, and one less, are counted."""
    made = [*SHORT, f"source.path={text_file}", *words]
    steps = settled(RunSpec(compose_run([*made, "train.tokens=9000"]).config)).config["train"]["steps"]

    def trained(steps: int) -> int:
        spec = RunSpec(compose_run([*made, f"train.steps={steps}"]).config)
        return build_task(spec)[1].tokens(steps)

    assert trained(steps - 1) < 9000 <= trained(steps) and steps > 3


@pytest.mark.parametrize("words", [[], ["train.batch_size=linear(2,6)"]])
def test_an_epoch_of_shorter_rows_has_more_of_them(words: list[str], text_file: Path) -> None:
    made = [*SHORT, f"source.path={text_file}", *words]
    tokens = list[int]()
    for length in ("16", "stages(8@0,16@0.9)"):
        spec = settled(RunSpec(compose_run([*made, f"data.length={length}", "train.epochs=1"]).config))
        tokens.append(build_task(spec)[1].tokens(spec.config["train"]["steps"]))
    assert 0 <= tokens[1] - tokens[0] < 16 * 6 or 0 <= tokens[0] - tokens[1] < 16 * 6  # up to the last step


def test_a_task_that_samples_has_no_epochs() -> None:
    words = [
        "size=tiny",
        "tokenizer=bytes",
        "task=policy",
        "alignment=grpo",
        "reward=exact_answer",
        "source=gsm_symbolic",
    ]
    config = compose_run([*words, "source.size=20", "model.max_len=512", "train.epochs=1", "train.batch_size=8"]).config
    with pytest.raises(UserError, match="task=policy has no epochs"):
        settled(RunSpec(config))


def test_smallest_is_the_first_number_that_reaches_it() -> None:
    for first in (1, 2, 3, 7, 8, 1000):
        assert smallest(lambda n, first=first: n >= first) == first


def test_a_run_of_epochs_has_the_same_files_as_one_of_its_steps(tmp_path: Path, text_file: Path) -> None:
    settings = [*SHORT, f"source.path={text_file}", f"out={tmp_path}", "train.batch_size=16"]
    ended = ablatio(["train", *settings, "train.epochs=0.5", "name=a"], tmp_path / "log")
    assert ended.code == 0, ended.err
    steps = summary(tmp_path / "a")["steps"]
    assert ablatio(["train", *settings, f"train.steps={steps}", "name=b"], tmp_path / "log").code == 0
    ours, theirs = summary(tmp_path / "a"), summary(tmp_path / "b")
    assert ours["run"] == theirs["run"] and ours["val/loss"] == theirs["val/loss"]
