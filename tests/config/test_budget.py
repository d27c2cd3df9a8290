"""One budget of a run: steps, or tokens or epochs from which steps follow; tokens per step from rows and batches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.config import budget
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
from ablatio.sweep.plan import plan_sweep
from ablatio.training.run_folder import run_id

Config = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def plain() -> Config:
    return compose_run([]).config


def given_train(plain: Config, **train: object) -> Config:
    length = train.pop("length", 256)
    return {**plain, "train": {**plain["train"], **train}, "data": {**plain["data"], "length": length}}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 10**9), st.integers(1, 64), st.integers(1, 16), st.integers(1, 2048)
)  # fmt: skip
def test_steps_are_the_fewest_that_reach_the_tokens(
    plain: Config, tokens: int, rows: int, batches: int, length: int
) -> None:
    asked = given_train(plain, tokens=float(tokens), batch_size=rows, accumulate=batches, length=length)
    found, problems = budget.settled(asked, ["train.tokens=1"])
    assert not problems
    steps, per_step = found["train"]["steps"], rows * batches * length
    assert (steps - 1) * per_step < tokens <= steps * per_step
    assert found["train"]["tokens"] is None and budget.settled(found, [])[0] == found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 2048))
def test_batch_tokens_are_exact_or_refused_with_a_multiple(plain: Config, rows: int, batches: int, length: int) -> None:
    wanted = rows * batches * length
    asked = given_train(plain, batch_tokens=float(wanted), batch_size=rows, length=length)
    found, problems = budget.settled(asked, [])
    train = found["train"]
    assert not problems and train["batch_size"] * train["accumulate"] * length == wanted
    if rows * length > 1:
        asked["train"]["batch_tokens"] = wanted + 0.5
        (problem,) = budget.settled(asked, [])[1]
        assert problem.where == "train.batch_tokens"
        if problem.fix:
            repaired = float(problem.fix.partition("=")[2])
            assert repaired % (rows * length) == 0 and abs(repaired - wanted) <= 0.1 * wanted + 1


def test_a_budget_said_otherwise_is_the_same_run() -> None:
    """2400 steps of 4 rows of 256 tokens, in four ways: one config, one id."""
    ways = [[], ["train.tokens=2457600"], ["train.tokens=2457599", "train.batch_tokens=1024"], ["train.steps=2400"]]
    assert len({run_id(compose_run(words).config) for words in ways}) == 1


def test_a_run_has_one_budget_and_the_command_line_comes_before_a_file() -> None:
    with pytest.raises(ConfigError, match="is a second budget beside"):
        compose_run(["train.tokens=1e6", "train.steps=10"])
    assert compose_run(["experiment=demo", "train.tokens=1e6"]).config["train"]["steps"] == 977
    assert compose_run(["train.tokens=null", "train.steps=7"]).config["train"]["steps"] == 7


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["train.batch_tokens=500000"], "try: train.batch_tokens=499712"),
        (["train.batch_tokens=8192", "train.accumulate=3"], "train.accumulate=3 gives 3,072 tokens per step"),
        (["train.batch_tokens=8192", "stabilizer=[batch_ramp]"], "are fixed only where"),
        (["train.tokens=1e14"], "comes to"),
        (["train.tokens=-5"], "expected a value > 0"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        compose_run(words)


def test_arms_of_a_sweep_have_the_steps_of_their_own_batches() -> None:
    plan = plan_sweep(["train.batch_size=4,8", "train.tokens=100000", "seed=1,2"])
    assert [job.config["train"]["steps"] for job in plan.jobs] == [98, 49, 98, 49]
    # A quantity that is matched by steps replaces the budget of the arms.
    plan = plan_sweep(["model.d_model=64,128", "train.tokens=100000", "match=flops", "resize=train.steps"])
    first, second = (job.config["train"]["steps"] for job in plan.jobs)
    assert first == 98 and second < first


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["train.batch_tokens=5120", "train.batch_size=16", "data.length=256"], "train.batch_size=10"),
        (["train.batch_tokens=5121", "train.batch_size=32", "data.length=256"], "train.batch_tokens=8192"),
    ],
)
def test_a_refused_step_always_has_a_command_that_runs(words: list[str], fix: str) -> None:
    """A smaller batch that fits exactly, if there is one; else the nearest number of tokens."""
    with pytest.raises(ConfigError, match=f"try: {fix}"):
        compose_run(words)
    key = fix.partition("=")[0]
    train = compose_run([*(word for word in words if not word.startswith(f"{key}=")), fix]).config["train"]
    assert train["batch_tokens"] is None and train["steps"] > 0


def test_a_time_is_no_budget_and_the_answer_says_what_is() -> None:
    with pytest.raises(ConfigError, match="a time does not say how many steps"):
        compose_run(["train.minutes=5"])
