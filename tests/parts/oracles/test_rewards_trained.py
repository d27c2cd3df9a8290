"""Rewards from trained models against their formulae, and their verdicts read back token by token."""

import math
from pathlib import Path

import pytest
import torch
from helpers.runs import ablatio

from ablatio import rewards, sources
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer, judged
from ablatio.training.frozen_model import open_model
from ablatio.training.reward_model import open_reward

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes",
    "source=worked_sums", "source.size=60", "data.val_fraction=0.3", "train.batch_size=4", "train.val_every=null",
    "train.checkpoint_every=null", "trainer.threads=1", "trainer.progress=false", "train.steps=3",
)  # fmt: skip


class Verdicts:
    """A model that finds a question with the word `good` likely to be answered by Yes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def logprobs(self, questions: list[str], answers: list[str]) -> torch.Tensor:
        self.asked += questions
        pairs = zip(questions, answers, strict=True)
        return torch.tensor([-1.0 if ("good" in q.split("|")[1]) == (a == "Yes") else -3.0 for q, a in pairs])


@pytest.mark.oracle("reward=judge", "the two verdicts' share of their probability")
def test_judge_is_the_share_of_its_verdicts() -> None:
    model = Verdicts()
    made = rewards.build("judge", {"path": "r", "form": "{prompt}|{answer}|{criteria}", "criteria": "be {answer}"},
                         open_model=lambda path, key: model, open_run=None)  # fmt: skip
    found = made([Answer("q {prompt}", "good {criteria}"), Answer("q", "bad")])
    share = math.exp(-1) / (math.exp(-1) + math.exp(-3))
    assert found.tolist() == pytest.approx([share, 1 - share])
    assert model.asked[0] == "q {prompt}|good {criteria}|be {answer}"  # the places of the form alone are filled
    for knobs, said in (({}, "reward.path"), ({"path": "r", "form": "x"}, "{answer}"),
                        ({"path": "r", "no": "Yes"}, "reward.no=No")):  # fmt: skip
        with pytest.raises(UserError) as caught:
            rewards.build("judge", knobs, open_model=lambda path, key: model, open_run=None)
        assert said in str(caught.value)


@pytest.mark.oracle("reward=process_model", "products and minima of the steps' probabilities")
@pytest.mark.parametrize("of, expected", [("each", [0.5, 0.75]), ("product", [0.375]), ("min", [0.5])])
def test_process_model_combines_its_steps(of: str, expected: list[float]) -> None:
    class Steps:
        def at(self, answers: list[Answer], ends: list[list[int]]) -> list[torch.Tensor]:
            assert ends == [[6, 11], []]
            return [torch.tensor([0.0, math.log(3)]), torch.zeros(0)]

    made = rewards.build("process_model", {"path": "r", "of": of}, open_run=lambda path: Steps(), open_model=None)
    answers = [Answer("q", "1+1=2\n2+2=4", (), tuple(b"1+1=2\n2+2=4")), Answer("q", " ", (), (32,))]
    scores, steps = judged(made, "process_model", answers)
    assert steps is not None and [s.score for s in steps[0]] == pytest.approx(expected) and steps[1] == []
    assert steps[0][-1].end == 11 and float(scores[0]) == pytest.approx(sum(expected))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of conversations and a process reward model, each after three steps."""
    folder = tmp_path_factory.mktemp("trained")
    for task in ("sft", "process_reward"):
        ended = ablatio(["train", *SMALL, f"task={task}", f"out={folder}", f"name={task}"], folder / "log")
        assert ended.code == 0, ended.err
    return folder


def test_frozen_model_gives_the_log_probability_of_a_continuation(runs: Path) -> None:
    """Oracle: the chain rule on logits of the whole text."""
    asked = open_model(str(runs / "sft"), "reward.path")
    found = asked.logprobs(["3+4", "9+9+1"], ["3+4=7", "no"])
    for question, answer, value in zip(("3+4", "9+9+1"), ("3+4=7", "no"), found.tolist(), strict=True):
        [head] = asked._asked([question])
        tail = list(answer.encode())
        logits = asked.model(torch.tensor([[*head, *tail]]))[0].log_softmax(-1)
        assert value == pytest.approx(sum(float(logits[len(head) - 1 + i, t]) for i, t in enumerate(tail)), abs=1e-3)


def test_process_reward_of_a_run_is_that_of_its_task(runs: Path) -> None:
    """The reward of a policy equals the task's own logits at the ends of the steps; labels are those of the data."""
    from ablatio.training.load import load_run

    run = load_run(runs / "process_reward")[0]
    task, units = run.task, run.task.units["validation"][:6]
    answers = [task.set.answers[member] for member, _, _ in units]
    with torch.no_grad():
        example = task.example(task._batch(units), torch.Generator())
        expected = task.logits(run.model.eval(), example)
    opened = open_reward(str(runs / "process_reward"), task.tokenizer)
    made = rewards.build("process_model", {"path": "r", "of": "each"}, open_run=lambda path: opened, open_model=None)
    texts = [task._decode(a.ids[a.first :].tolist()) for a in answers]
    asked = [Answer("", text, a.ids[: a.first].tolist(), a.ids[a.first :].tolist())
             for a, text in zip(answers, texts, strict=True)]  # fmt: skip
    found = [step.score for steps in made(asked) for step in steps]
    assert found == pytest.approx(expected.sigmoid().tolist(), abs=1e-5)
    for (_, ends, labels), text in zip(units, texts, strict=True):
        lines = text.split("\n")
        assert len(ends) == len(labels) == len(lines)
        right = [is_right(line) for line in lines[:-1]]
        assert [label == 1.0 for label in labels[:-1]] == right


def is_right(line: str) -> bool:
    """True if a line such as 3+4=7 is right."""
    left, _, result = line.partition("=")
    a, _, b = left.partition("+")
    return int(a) + int(b) == int(result)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "1+1", "steps": ["1+1=2"], "labels": [1, 0]}', "1 numbers from 0 to 1"),
        ('{"prompt": "1+1", "steps": ["1+1=2"], "labels": [2]}', "1 numbers from 0 to 1"),
        ('{"prompt": "1+1", "steps": [], "labels": []}', "a list of texts, one per step"),
        ('{"steps": ["1+1=2"], "labels": [1]}', "`prompt` is missing"),
    ],
)
def test_records_of_labeled_steps_are_checked(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"prompt": "3+4", "steps": ["3+4=7", "#### 7"], "labels": [1, true]}\n' + line + "\n")
    source = sources.build("feedback", {"path": str(path)})
    read = source.feedback()
    first = next(read)
    assert first.answers == ("3+4=7\n#### 7",) and first.labels == ((1.0, 1.0),) and first.scores == (1.0,)
    with pytest.raises(UserError, match=said):
        next(read)
