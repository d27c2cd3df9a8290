"""Reward models and preference tuning: losses compared with plain loops, and real runs."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary
from torch import Tensor

from ablatio.data.order import RowPlan
from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_generator
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts, tiny_models
from ablatio.training.task_context import TaskContext
from ablatio_std.tasks.preference import _next_different

REWARD, PREFERENCE = kinds.tasks["reward"], kinds.tasks["preference"]


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    path = tmp_path / "feedback.jsonl"
    pairs = [{"prompt": f"{i} and {j}?", "chosen": "yes!", "rejected": "no"} for i in range(6) for j in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in pairs), encoding="utf-8")
    return path


def settings(tmp_path: Path, feedback: Path) -> list[str]:
    plain = [s for s in TINY if not s.startswith(("source", "model.max_len"))]
    return [*plain, "source=feedback", f"source.path={feedback}", f"out={tmp_path}", "model.max_len=64"]


def answer_logps(model: Any, answer: Any) -> Tensor:
    """log p of each token of one answer (T,), computed without batching."""
    ids = torch.from_numpy(answer.ids.astype("int64"))
    logps = model(ids[None])[0].log_softmax(-1)
    return torch.stack([logps[t - 1, ids[t]] for t in range(answer.first, len(ids))])


@pytest.mark.oracle("task=preference", "DPO by a loop over answers, each through the model by itself")
def test_dpo_loss_matches_a_loop_over_answers() -> None:
    task, model = sample_parts.task(PREFERENCE)
    reference = {i: answer_logps(model, task.set.answers[i]).sum().detach() for i in task._wanted()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=named_generator(1, "move")) * 0.05)
    batch = task.training[2]
    total, count, _ = task.loss(model, task.example(batch, named_generator(0, "unused")))
    first, n = task.setup.plan.batch(2)
    pairs = [task.units[Units_row(task, g)][0] for g in range(first, first + n)]
    losses = []
    for better, worse in pairs:
        ratios = [answer_logps(model, task.set.answers[i]).sum() - reference[i] for i in (better, worse)]
        losses.append(-F.logsigmoid(0.1 * (ratios[0] - ratios[1])))
    assert int(count) == len(pairs)
    torch.testing.assert_close(total, torch.stack(losses).sum(), rtol=2e-4, atol=2e-5)


def Units_row(task: Any, number: int) -> int:  # noqa: N802 (reads like the task's own)
    found: int = task.training.rows.row(number)[0]
    return found


def test_shared_prompt_is_encoded_once_per_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the tokens that the first layer processes, with and without the shared prefix."""
    task, model = sample_parts.task(PREFERENCE)
    example, seen = task.example(task.training[0], named_generator(0, "unused")), []
    model.model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2].numel()))
    task.loss(model, example)
    assert len(example.prompts) == len(example.tokens) / 2
    assert seen == [example.prompts.numel(), example.tokens[:, :-1].numel()]
    seen.clear()
    model.shared_prefix = False
    task.loss(model, example)
    assert seen == [len(example.tokens) * (example.longest - 1)]


@pytest.mark.parametrize("name", [e.name for e in kinds.alignments if e.facts["data"] != "prompts"])
def test_each_alignment_gets_its_inputs(name: str) -> None:
    """Before training, policy and reference log-probabilities agree; the loss is finite and has gradients."""
    task, model = sample_parts.task(PREFERENCE, alignment={"name": name, **REGISTRIES["alignment"][name].defaults})
    example = task.example(task.training[0], named_generator(0, "unused"))
    words = task.words(model, example)
    for word, reference in (("chosen", "ref_chosen"), ("logps", "ref_logps"), ("kl_logps", "ref_kl_logps")):
        if {word, reference} <= set(task.asked):
            torch.testing.assert_close(words[word], words[reference], rtol=1e-4, atol=1e-4)
    total, weight, _ = task.loss(model, example)
    (total / weight).backward()
    assert torch.isfinite(total) and any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def kto(lines: list[dict[str, Any]], folder: Path) -> Any:
    """task=preference with alignment=kto on these lines."""
    path = folder / "feedback.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = tiny_models.config(PREFERENCE, None, max_len=160)
    config["source"] = {"name": "feedback", "path": str(path)}
    config["alignment"] = {"name": "kto", **kinds.alignments["kto"].defaults}
    config["tokenizer"], config["data"] = {"name": "bytes"}, config["data"] | {"val_fraction": 0.3}
    return sample_parts.made(PREFERENCE, None, setup=TaskContext(config, RowPlan(4)))


def test_kl_answers_of_kto_belong_to_other_prompts(tmp_path: Path) -> None:
    """Several answers to a prompt, one of whose prompts is so long that it is cut; each answer is used once."""
    lines = [{"prompt": f"{i}?", "answers": [f"a{i}", f"b{i}", f"c{i}"], "scores": [2, 1, 0]} for i in range(20)]
    lines += [{"prompt": "long " * 60 + "?", "chosen": "y" * 30, "rejected": "n"}, {"prompt": "x?", "chosen": "Yes",
              "rejected": "No"}]  # fmt: skip
    task = kto(lines, tmp_path)
    prompt_of = {i: line.source.prompt for line in task.set.judged["train"] for i in line.members}
    text_of = {i: task.set.answers[i].ids[task.set.answers[i].first :].tolist() for i in prompt_of}
    used = []
    for (members, _), number in zip(task.units, task.kl_answers, strict=True):
        found = task.set.answers[number]
        answer = found.ids[found.first :].tolist()
        strangers = [i for i in prompt_of if text_of[i] == answer and prompt_of[i] != prompt_of[members[0]]]
        assert strangers and len(found.ids) <= task.setup.length + 1
        own = task.set.answers[members[0]]
        start = own.ids[: own.first].tolist()
        assert found.ids[0] == start[0] and found.ids[1 : found.first].tolist() == start[len(start) - found.first + 1 :]
        used.append(strangers[0])
    assert sorted(used) == sorted(members[0] for members, _ in task.units)


def test_kl_answers_of_one_answer_per_prompt_keep_their_order(tmp_path: Path) -> None:
    lines = [{"prompt": f"{i}?", "completion": f"a{i}", "label": i % 2 == 0} for i in range(30)]
    task = kto(lines, tmp_path)
    order = [i for line in task.set.judged["train"] for i in line.members]
    assert [members[0] for members, _ in task.units] == order


@pytest.mark.parametrize(
    ("prompts", "expected"), [("abab", [1, 2, 3, 0]), ("aab", [2, 2, 0]), ("baa", [1, 0, 0]), ("abbb", [1, 0, 0, 0])]
)
def test_next_different_prompt(prompts: str, expected: list[int]) -> None:
    assert _next_different(prompts) == expected


def test_kto_on_a_single_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="other prompts"):
        _next_different("aaa")


def test_reference_logps_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run of the same model and data uses the cache; other weights are computed again."""
    first, model = sample_parts.task(PREFERENCE)
    again, _ = sample_parts.task(PREFERENCE)
    monkeypatch.setattr(type(again), "_compute_reference", lambda *given: pytest.fail("computed again"))
    again.prepare(model)
    assert np.array_equal(first.said, again.said)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    with pytest.raises(pytest.fail.Exception):
        again.prepare(model)


@pytest.mark.oracle("task=reward", "the mean over prompts of the mean over pairs, by a loop (InstructGPT, equation 1)")
@pytest.mark.parametrize("knobs", [{}, {"margin": 0.5}, {"centering": 0.3}, {"elo": "order"}])
def test_ranking_loss_is_the_mean_over_its_pairs(knobs: dict[str, Any]) -> None:
    task, model = sample_parts.task(REWARD, knobs)
    lines = [next(line for line in task.set.judged["train"] if test(line)) for test in (
        lambda line: len(line.members) == 3, lambda line: line.elo, lambda line: line.scores == (1.0, 0.0),
    )]  # fmt: skip
    total, weight, _ = task.loss(model, task.example(task._batch(lines), named_generator(0, "unused")))
    expected = []
    for line in lines:
        r = [model.reward_head(model.model(torch.from_numpy(task.set.answers[i].ids.astype("int64"))[None])[0, -1])
             for i in line.members]  # fmt: skip
        losses = []
        for i, j in itertools.permutations(range(len(r)), 2):
            gap = line.scores[i] - line.scores[j]
            if gap <= 0:
                continue
            apart = r[i] - r[j] - knobs.get("margin", 0.0) * gap
            odds = 1 / (1 + math.pow(10, -gap / 400)) if line.elo and "elo" not in knobs else 1.0
            loss = -odds * torch.log(torch.sigmoid(apart)) - (1 - odds) * torch.log(1 - torch.sigmoid(apart))
            losses.append(loss + knobs.get("centering", 0.0) * (r[i] + r[j]) ** 2)
        expected.append(torch.stack(losses).mean())
    assert float(weight) == pytest.approx(3)
    torch.testing.assert_close(total, torch.stack(expected).sum(), rtol=1e-4, atol=1e-5)


def test_calibration_error_and_length_bias_by_hand() -> None:
    from ablatio_std.tasks.reward import calibration_error, length_bias

    margin, weight = torch.tensor([2.0, 2.0, -2.0, 2.0]).double(), torch.ones(4).double()
    assert calibration_error(margin, weight) == pytest.approx(abs(0.75 - 1 / (1 + math.exp(-2))))
    longer = torch.tensor([4.0, 4.0, -4.0, 4.0]).double()
    assert length_bias(margin, longer) == pytest.approx(1) and length_bias(margin, -longer) == pytest.approx(-1)
    both = np.corrcoef(np.r_[1.0, -2.0, -1.0, 2.0], np.r_[3.0, 1.0, -3.0, -1.0])[0, 1]
    assert length_bias(torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0, 1.0]).double()) == pytest.approx(both)


@pytest.mark.parametrize("task", [["task=reward"], ["task=preference", "alignment=tr_dpo", "alignment.every=3"]])
def test_killed_run_resumes_bit_for_bit(tmp_path: Path, feedback: Path, task: list[str]) -> None:
    given = [*settings(tmp_path, feedback), *task]
    whole = ablatio(["train", *given, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    cut = cut_and_resumed(given, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")
    scored = ablatio(["evaluate", str(cut), "--json"], tmp_path / "log")
    result = summary(cut)
    assert json.loads(scored.out)["scores"][0]["accuracy"] == pytest.approx(result["val/accuracy"])
    assert result["score"] == {"name": "val/accuracy", "value": result["val/accuracy"], "better": "higher"}


@pytest.mark.parametrize(
    "extra, what",
    [
        (["task=preference"], "is not set, and task=preference needs it"),
        (["task=preference", "alignment=ppo"], "task=preference provides given answers"),
        (["task=reward", "model.max_len=4"], "lines of feedback, "),
        (["task=reward", "source=gsm_symbolic"], "task=reward accepts feedback"),
    ],
)
def test_incompatible_settings_are_rejected(tmp_path: Path, feedback: Path, extra: list[str], what: str) -> None:
    given = settings(tmp_path, feedback)
    if "source=gsm_symbolic" in extra:
        given = [s for s in given if not s.startswith("source")]
    given = [s for s in given if s.split("=")[0] not in {e.split("=")[0] for e in extra}]
    ended = ablatio(["train", *given, *extra, "name=run"], tmp_path / "log")
    assert ended.code == 2 and what in ended.err, ended.err
