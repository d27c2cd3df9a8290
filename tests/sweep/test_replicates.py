"""`seeds.data=1,2,3` are replicates: blocks in which every arm runs with the same seeds of each random stream."""

import pytest

from ablatio.errors import ConfigError
from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.replicates import replicate_sentences
from ablatio.report.read.run import Run
from ablatio.sweep import request
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.replicates import described
from ablatio.training.task_context import Seeds


@pytest.mark.parametrize(
    ("words", "numbers", "varied"),
    [
        (["seeds.data=1,2,3"], [1, 2, 3], {"data": {1, 2, 3}}),
        (["seeds.init=4,7"], [4, 7], {"init": {4, 7}}),
        (["seeds.init=1,2", "seeds.data=1,2,10"], [101, 102, 110, 201, 202, 210],
         {"init": {1, 2}, "data": {1, 2, 10}}),
        (["seed=1,2", "seeds.data=5,6"], [15, 16, 25, 26], {"init": {1, 2}, "data": {5, 6}, "dropout": {1, 2}}),
        (["seed=3", "seeds.data=5,6"], [5, 6], {"data": {5, 6}}),
    ],
)  # fmt: skip
def test_every_arm_runs_once_in_every_block(words: list[str], numbers: list[int], varied: dict[str, set[int]]) -> None:
    plan = plan_sweep(["norm=layernorm,rmsnorm", *words])
    assert [cell.label for cell in plan.cells] == ["norm=layernorm", "norm=rmsnorm"]
    assert [job.seed for job in plan.jobs] == [number for number in numbers for _ in plan.cells]
    assert len({job.id for job in plan.jobs}) == len(plan.jobs)
    streams = {(job.label, job.seed): described(job.config) for job in plan.jobs}
    for job in plan.jobs:  # as the run itself reads them, and the same for all arms of a block
        seeds = Seeds(job.config)
        assert described(job.config) == {"init": seeds.init, "data": seeds.data, "dropout": seeds.dropout}
        assert streams[job.label, job.seed] == streams["norm=rmsnorm", job.seed]
    for stream in ("init", "data", "dropout"):
        values = {found[stream] for found in streams.values()}
        assert values == varied.get(stream, values) and (len(values) > 1) == (stream in varied)


def test_more_replicates_are_the_same_study_with_more_blocks() -> None:
    few, many = (plan_sweep(["norm=layernorm,rmsnorm", f"seeds.data={values}"]) for values in ("1,2", "1,2,3"))
    assert {job.id: job.seed for job in few.jobs}.items() <= {job.id: job.seed for job in many.jobs}.items()
    first, second = (["norm=a,b", f"seeds.init={v}", "seeds.data=1,2"] for v in ("1", "1,2"))
    assert request.lasting_but_seeds(first) == request.lasting_but_seeds(second) == ["norm=a,b"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["seeds.data=a,b"], "expected int"),
        (["seeds.data=-1,2"], "expected a value"),
        (["seeds.data=1,2", "until=resolved", "seeds=3..5"], "adds values of seed="),
        (["seeds.data=1,2", "recipe=instructgpt"], "an arm of this sweep is a recipe"),
    ],
)
def test_replicates_that_cannot_be_planned_are_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        request.read(words)


def test_what_stays_the_same_is_said_before_the_first_run() -> None:
    assert "seeds.init and seeds.dropout are those of seed=" in next(iter(request.notes((), ["seeds.data=1,2"])))
    assert not [*request.notes((), ["seed=1,2", "seeds.data=1,2"])] and not [*request.notes((), ["seed=1,2"])]


def arm(seeds: list[tuple[int, int]], scores: list[float], folder: object = None) -> Arm:
    from pathlib import Path

    runs = [
        Run(
            Path("x"), "g", f"{i}{j}", {}, 10 * i + j, "run", "done", scores={"val/loss": score},
            config={"seed": 1, "seeds": {"init": i, "data": j, "dropout": None}},
        )
        for (i, j), score in zip(seeds, scores, strict=True)
    ]  # fmt: skip
    return Arm("a", "a", {}, runs)


def test_the_report_splits_the_variance_of_crossed_replicates() -> None:
    crossed = [(i, j) for i in (1, 2) for j in (1, 2, 3)]
    # init +-0.3, order -0.1, 0, 0.1, nothing else
    scores = [3 + (0.3 if i == 1 else -0.3) + 0.1 * (j - 2) for i, j in crossed]
    said = replicate_sentences([arm(crossed, scores)], "val/loss", "nats")
    assert "sd 0.424 nats from the initial weights, 0.1 from the order" in said["en"][0]
    assert "0.424" in said["zh"][0] and "(2 inits x 3 orders, 1 arm(s) pooled)" in said["en"][0]


def test_the_report_says_which_streams_vary() -> None:
    alone = replicate_sentences([arm([(1, 1), (1, 2)], [3.0, 3.1])], "val/loss", "nats")
    assert alone["en"] == [
        "Replicates differ only in: order of the data. The conclusions hold for the initial weights and dropout masks "
        "of these runs."
    ]
    assert len(alone["zh"]) == 1
    both = [(1, 1), (2, 2), (3, 3)]  # as with seed=1,2,3; dropout differs too
    runs = arm(both, [3.0, 3.1, 3.2])
    for run, (seed, _) in zip(runs.runs, both, strict=True):
        object.__setattr__(run, "config", {"seed": seed, "seeds": {"init": None, "data": None, "dropout": None}})
    assert replicate_sentences([runs], "val/loss", "nats") == {"en": [], "zh": []}
