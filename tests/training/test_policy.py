"""task=policy: every method trains, killed runs resume bit for bit, and invalid input is rejected with a reason."""

import logging

import pytest
import torch
from helpers.policies import made, step
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio.errors import UserError
from ablatio.model.optimizer_step import SkipStep
from ablatio.model.parameter_roles import named_generator
from ablatio.model.rl.answers import Answer, ReasoningStep, RewardError, judged, token_rewards
from ablatio.model.rl.policy_outputs import policy_outputs
from ablatio.registry.kinds import alignments, rewards, tasks

METHODS = [e.name for e in alignments if e.facts["data"] == "prompts"]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_with_finite_declared_metrics(name):
    """Three steps; in the first one the policy still equals the one that sampled the rollout, so both KLs are 0."""
    task, model = made(name, reward="length", reward_knobs={"target": 20}, answer_tokens=12, prompt_tokens=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    declared = {*tasks["policy"].facts["metrics"], *alignments[name].facts["metrics"]}
    for number in range(3):
        loss, measures = step(task, model, number, optimizer)
        assert not measures.keys() - declared
        assert all(torch.isfinite(v).all() for v in measures.values()) and loss == loss
        if number == 0:
            assert float(measures["train/old_kl"]) == pytest.approx(0, abs=1e-9)
            assert float(measures["train/kl_k1"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_policy_learns_short_answers(name):
    """The reward prefers short answers; at the start the end token is as likely as each of the 256 bytes."""
    knobs = {"kl_coef": 0.0, "vf_coef": 0.1} if name in ("ppo", "a2c") else {"beta": 0.0}
    if name == "ppo":
        knobs |= {"stop_kl": None, "epochs": 2}
    task, model = made(name, reward_knobs={"target": 4}, method_knobs=knobs, batch_size=64, answer_tokens=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    lengths = [float(step(task, model, n, optimizer)[1]["train/answer_length"]) for n in range(40)]
    assert sum(lengths[-5:]) < sum(lengths[:5]) - 5, lengths


def test_reference_is_frozen_and_only_ppo_has_a_critic():
    task, model = made("ppo")
    before = {n: w.clone() for n, w in task.reference.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for number in range(3):
        step(task, model, number, optimizer)
    assert all(torch.equal(w, before[n]) for n, w in task.reference.state_dict().items())
    assert model.value_head.weight.any()
    grpo, plain = made("grpo")
    assert not hasattr(plain, "value_head") and not grpo.critic


def test_minibatches_cover_each_answer_once_per_epoch():
    task, model = made("ppo", batch_size=3, accumulate=2, method_knobs={"minibatches": 2, "epochs": 3})
    passes = []
    for number in range(6):
        task.begin_step(model, number)
        passes.append([row for part in range(2) for row in task._rows(number * 2 + part).tolist()])
    for epoch in range(3):
        assert sorted(passes[2 * epoch] + passes[2 * epoch + 1]) == list(range(12))
    assert passes[0] != passes[2]
    assert task.number == 0
    task.begin_step(model, 6)
    assert task.number == 1


def test_rollout_ends_early_at_stop_kl():
    task, model = made("ppo", method_knobs={"stop_kl": 1e-4, "epochs": 50})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for number in range(8):
        step(task, model, number, optimizer)
    assert task.number >= 1


def early_stops(task, model, count=6, parts=1):
    """[(KL by k1, by k3, is the update dropped?)] of the first rollout; the weights are pushed in one direction."""
    found = []
    for number in range(count):
        task.begin_step(model, number)
        for at in range(parts):
            batch = task.training[number * parts + at]
            for _ in range(2):  # computed twice, as an optimizer with a closure does: it counts once
                task.loss(model, task.example(batch, named_generator(0, "x")))
        rows, all_of = task._select(task._step_rows()), task.rollout[task._step_rows()]
        now = policy_outputs(model, all_of, temperature=task.temperature, entropy=False).logps
        d, mask = rows["old_logps"] - now.detach(), rows["mask"]
        k1, k3 = ((x * mask).sum() / mask.sum() for x in (d, torch.exp(-d) - 1 + d))
        try:
            task.before_step(None)
            dropped = False
        except SkipStep:
            dropped = True
        found.append((float(k1), float(k3), dropped, task.moved, task.number))
        with torch.no_grad():
            model.model.embed_tokens.weight *= 1.05
    return found


@pytest.mark.parametrize(("batch_size", "parts"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("by", ["k1", "k3"])
@pytest.mark.parametrize("drops", [False, True])
def test_early_stop_by_either_estimate_with_and_without_the_step(by, drops, batch_size, parts):
    """The loop: measure before the update; once above 1.5 stop_kl, drop it or not, and sample anew for the next."""
    knobs = {"stop_kl": 2e-4, "stop_by": by, "stop_drops": drops, "epochs": 50}
    task, model = made("ppo", method_knobs=knobs, batch_size=batch_size, accumulate=parts)
    found = early_stops(task, model, parts=parts)
    for n, (k1, k3, dropped, moved, number) in enumerate(found):
        assert moved == pytest.approx(k1 if by == "k1" else k3, abs=1e-6)
        above = moved > 1.5 * 2e-4
        assert dropped == (drops and above)
        if n + 1 < len(found):
            assert found[n + 1][4] == number + above
    assert any(m > 3e-4 for *_, m, _ in found) and found[0][2] is False


def test_collapse_to_one_token_is_reported(caplog):
    task, model = made("grpo")
    whole, usual = torch.zeros(model.vocab_size), model.logits
    whole[65] = 50.0
    model.logits = lambda hidden: usual(hidden) + whole
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        task.begin_step(model, 0)
    assert "collapsed: 100 % of the tokens of its last 8 answers are 'A'" in caplog.text
    assert float(task.measures["train/top_token"]) == 1


TWO_ANSWERS = [Answer("p", "a", (1,), (2,)), Answer("p", "b", (1,), (3,))]


@pytest.mark.parametrize(
    "returned_value, words",
    [
        (torch.tensor([0.0, float("nan")]), "returned nan for 1 of 2 answers, the first to 'p': 'b'"),
        (torch.tensor([float("inf"), 0.0]), "returned inf for 1 of 2"),
        (torch.zeros(3), "returned 3 for 2 answers"),
        (torch.zeros(2, 1), "returned 2x1 for 2 answers"),
        (torch.tensor(1.0), "returned one number for 2 answers"),
        ([[ReasoningStep(1, 0.0)]], "for 2 answers"),
        ([[ReasoningStep(1, float("nan"))], []], "returned nan"),
    ],
)
def test_invalid_reward_values_are_rejected(returned_value, words):
    with pytest.raises(RewardError, match="reward=odd") as caught:
        judged(lambda answers: returned_value, "odd", TWO_ANSWERS)
    assert words in str(caught.value)


def test_step_rewards_are_placed_at_last_token_of_each_step():
    answer = Answer("p", "1+1=2\n2+2=5\n", (1,), tuple(b"1+1=2\n2+2=5\n"))
    process = rewards.build("process", {}, open_run=None)
    scores, steps = judged(process, "process", [answer])
    assert steps == [[ReasoningStep(6, 1.0), ReasoningStep(12, 0.0)]] and scores.tolist() == [1.0]
    mask = torch.ones(1, 12)
    found = token_rewards(scores, steps, mask, [answer], lambda ids: bytes(ids).decode())
    assert found.nonzero().tolist() == [[0, 5]]
    whole = token_rewards(scores, None, mask, [answer], lambda ids: bytes(ids).decode())
    assert whole.nonzero().tolist() == [[0, 11]]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"method": "grpo", "batch_size": 6}, "6 answers (train.batch_size x train.accumulate x minibatches) cannot"),
        ({"method": "dpo"}, "alignment=dpo trains on pairs"),
        ({"answer_tokens": 200}, "model.max_len=160"),
        ({"reward": "model"}, "reward=model needs the run folder"),
    ],
)
def test_invalid_policy_settings_are_rejected(settings, words):
    with pytest.raises(UserError) as caught:
        made(**settings)
    assert words in str(caught.value) and "try:" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("method, kill_at", [("ppo", 3), ("ppo", 6), ("grpo", 5)])
def test_run_killed_at_any_step_resumes_bit_for_bit(tmp_path, text_file, method, kill_at):
    """PPO makes 4 x 2 steps per rollout, so steps 3 and 6 are in the middle of one."""
    settings = [*TINY, "task=policy", f"alignment={method}", "reward=length", "reward.target=3", "model.max_len=32"]
    settings += [f"source.path={text_file}", f"out={tmp_path}", "task.prompt_tokens=6", "task.answer_tokens=8"]
    settings += ["model.dropout=0.1", "train.batch_size=8", "alignment.minibatches=2", "train.checkpoint_every=1"]
    settings += ["train.keep=20", "data.val_tokens=64", "train.steps=10"]
    settings += ["alignment.kl_target=1.0"] if method == "ppo" else []
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = cut_and_resumed(settings, tmp_path, kill_at)
    last = "checkpoints/step-00000010.model.safetensors"
    assert (cut / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert metrics(cut) == metrics(tmp_path / "whole")
    assert summary(cut)["after"] == summary(tmp_path / "whole")["after"]
    assert (cut / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()


def test_policy_without_reward_is_rejected(tmp_path, text_file):
    run = ablatio(["train", *TINY, "task=policy", "alignment=grpo", f"out={tmp_path}"], tmp_path / "log")
    assert run.code == 2 and "task=policy needs it" in run.err and "reward=length" in run.err


def test_conversations_give_prompts_and_reference_answers():
    """Each epoch uses every question once; too long questions are left out."""
    task, model = made("grpo", "exact_answer", source="conversations", answer_tokens=8, batch_size=16)
    size = len(task.prompts.pools["train"])
    for epoch in range(2):
        asked = task.prompts(range(epoch * size, (epoch + 1) * size))
        assert sorted(p.ids for p in asked) == sorted(p.ids for p in task.prompts.pools["train"])
    loss, measures = step(task, model, 0)
    assert loss == loss and float(measures["train/reward"]) == 0
    prompt = task.prompts([0])[0]
    right = Answer("", f"#### {prompt.truth}", (), (), prompt.truth)
    texts = task.asking(model, [prompt], None).texts
    assert texts[0].truth == prompt.truth and texts[0].prompt
    assert rewards.build("exact_answer")(right) in (0.0, 1.0)
    assert task.content["left_out"] == 1  # one question has 243 tokens; at most 152 fit
    with pytest.raises(UserError, match="prompts are longer than the"):
        made("grpo", "length", source="conversations", answer_tokens=155)
