"""Preference losses against trl's trainers on the same log-probabilities, loops, closed forms and a tabular policy."""

import itertools
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from ablatio.errors import UserError
from ablatio.registry.kinds import alignments
from ablatio.testing import sample_alignments as batches

TYPES = {  # ours -> trl's loss_type
    "dpo": "sigmoid", "hinge": "hinge", "ipo": "ipo", "exo": "exo_pair", "nca": "nca_pair", "robust": "robust",
    "bco": "bco_pair", "sppo": "sppo_hard", "aot": "aot", "aot_unpaired": "aot_unpaired", "apo_zero": "apo_zero",
    "apo_down": "apo_down", "discopop": "discopop", "sft": "sft", "dpo_norm": "sigmoid_norm",
}  # fmt: skip
DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


def ours(name, data, seed=0, words=None, **knobs):
    """(loss, gradient of each input that depends on the policy)."""
    entry, method = alignments[name], alignments.build(name, knobs)
    given = batches.leaves(words or batches.batch(data, seed), entry.facts["asks"]["loss"])
    loss, _ = method.loss(**given)
    loss.backward()
    return loss.detach(), {w: x.grad for w, x in given.items() if getattr(x, "grad", None) is not None}


class Model:
    """Stand-in for a model with trl's fused head: returns given log-probabilities, after one prompt token."""

    training = True

    def __init__(self, log_probs, collision):
        zeros = torch.zeros_like(log_probs)
        self.output = SimpleNamespace(
            log_probs=log_probs, log_sum_sq_probs=collision, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    def __call__(self, **_):
        return self.output


def accelerator():
    same = lambda x: x  # noqa: E731
    return SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)


def trl_dpo(words, loss_type, *, beta=0.1, smoothing=0.0, divergence="reverse_kl", alpha=0.5, ld=None, weighting=False):
    """DPOTrainer's own loss, called on a mock trainer, and its gradients by the token log-probabilities."""
    tokens = torch.cat([words["chosen_tokens"], words["rejected_tokens"]]).detach().float().requires_grad_()
    reference = torch.cat([words["ref_chosen_tokens"], words["ref_rejected_tokens"]]).float()
    collision = torch.cat([words["chosen_collision"], words["rejected_collision"]]).float()
    mask = torch.cat([words["chosen_mask"], words["rejected_mask"]]).long()
    mask = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask], 1)  # a prompt of one token
    trainer = MagicMock()
    trainer.accelerator, trainer.aux_loss_enabled, trainer.precompute_ref_logps = accelerator(), False, False
    trainer.ld_alpha, trainer.f_divergence_type, trainer.f_alpha_divergence_coef = ld, divergence, alpha
    trainer.beta, trainer.label_smoothing, trainer.use_weighting = beta, smoothing, weighting
    trainer.loss_types, trainer.loss_weights = [loss_type], [1.0]
    trainer.args.discopop_tau, trainer.args.gradient_checkpointing = 0.05, False
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer.ref_model = Model(reference, collision)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, Model(tokens, collision), inputs, False)
    loss.backward()
    return loss.detach(), tokens.grad.chunk(2)


def single(words):
    """The batch in float32, so that both sides compute with the same numbers."""
    return {w: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for w, x in words.items()}


def agree(found, expected, words):
    """Assert equal losses and token gradients; the gradient of a sum is that of each of its tokens."""
    loss, gradients = found
    their_loss, theirs = expected
    assert loss == pytest.approx(float(their_loss), abs=1e-6, rel=1e-6)
    for which, their in zip(("chosen", "rejected"), theirs, strict=True):
        token = gradients.get(f"{which}_tokens")
        token = gradients[which][:, None].expand_as(their) if token is None else token
        assert torch.allclose(token * words[f"{which}_mask"], their * words[f"{which}_mask"], atol=1e-6)


@pytest.mark.oracle("alignment", "trl 1.16 DPOTrainer")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", sorted(TYPES))
def test_dpo_family_equals_trl(name, beta, seed):
    words = single(batches.batch("pairs", seed))
    entry = alignments[name]
    smoothing = 0.15 if entry.knob("label_smoothing") and name != "dpo" else 0.0
    knobs = {"label_smoothing": smoothing} if smoothing else {}
    knobs |= {"beta": beta} if entry.knob("beta") else {}
    found = ours(name, "pairs", words=words, **knobs)
    theirs = trl_dpo(words, TYPES[name], beta=beta, smoothing=smoothing)
    if name == "sft":  # trl's loss is a mean over tokens, so that only the values are compared
        assert found[0] == pytest.approx(float(theirs[0]), abs=1e-6)
        return
    agree(found, theirs, words)


@pytest.mark.oracle("alignment", "trl 1.16 DPOTrainer, f-divergences")
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("name", ["dpo", "robust", "hinge", "exo", "discopop", "ipo", "dpo_norm"])
def test_f_divergences_equal_trl(name, divergence):
    words = single(batches.batch("pairs", 3))
    smoothing = {"robust": 0.1, "exo": 1e-3}.get(name, 0.0)
    found = ours(name, "pairs", words=words, divergence=divergence, alpha=0.3, beta=0.2)
    expected = trl_dpo(words, TYPES[name], beta=0.2, smoothing=smoothing, divergence=DIVERGENCES[divergence], alpha=0.3)
    agree(found, expected, words)


@pytest.mark.parametrize("divergence", ["reverse_kl", *sorted(DIVERGENCES)])
@pytest.mark.parametrize("name", ["dpo", "robust", "hinge", "exo", "discopop", "dpo_norm"])
def test_long_answers_have_a_finite_loss(name, divergence):
    """Log-ratios of -600 to 600 nats, as whole answers have: exp of them overflows float32, loss and gradients do not.

    The loss falls when better and worse answers change places in the pairs of the wrong order.
    """
    losses = [
        long_pairs(name, [-600.0, 600.0, worse], [600.0, -600.0, better], divergence=divergence, alpha=0.0)
        for worse, better in ((-600.0, -30.0), (-30.0, -600.0))
    ]
    assert losses[1] < losses[0]


def long_pairs(name, chosen, rejected, **knobs):
    """Loss of answers of 40 tokens with these log-ratios; it and its gradients must be finite."""
    words = {"chosen": torch.tensor(chosen), "rejected": torch.tensor(rejected)}
    words |= {w: torch.zeros(len(chosen)) for w in ("ref_chosen", "ref_rejected")}
    words |= {w: torch.full((len(chosen),), 40.0) for w in ("chosen_length", "rejected_length")}
    loss, gradients = ours(name, "pairs", words=words, **knobs)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients.values())
    return float(loss)


@pytest.mark.oracle("alignment=discopop", "its formula in Python's floats, of log-ratios of long answers")
def test_discopop_of_long_answers():
    h, beta, tau = [-1200.0, -60.0, 5.0, 1200.0], 0.1, 0.05
    switch = [1 / (1 + math.exp(-beta * x / tau)) if x > -300 else 0.0 for x in h]
    terms = [
        (1 - s) * math.log1p(math.exp(-beta * x)) + s * math.exp(-beta * x) for s, x in zip(switch, h, strict=True)
    ]
    assert long_pairs("discopop", h, [0.0] * 4, beta=beta, tau=tau) == pytest.approx(sum(terms) / 4, rel=1e-6)


@pytest.mark.oracle("alignment=ld_dpo", "trl 1.16 DPOTrainer, ld_alpha")
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ld_dpo_equals_trl(alpha):
    words = single(batches.batch("pairs", 4))
    agree(ours("ld_dpo", "pairs", words=words, alpha=alpha), trl_dpo(words, "sigmoid", ld=alpha), words)


@pytest.mark.oracle("alignment=wpo", "trl 1.16 DPOTrainer, use_weighting")
def test_wpo_equals_trl():
    words = single(batches.batch("pairs", 5))
    agree(ours("wpo", "pairs", words=words), trl_dpo(words, "sigmoid", weighting=True), words)


@pytest.mark.oracle("alignment=tr_dpo", "trl 1.16 DPOTrainer and the schedule of its paper")
def test_tr_dpo_is_dpo_with_an_updated_reference():
    words = single(batches.batch("pairs", 6))
    agree(ours("tr_dpo", "pairs", words=words), trl_dpo(words, "sigmoid"), words)
    method = alignments.build("tr_dpo", {"tau": 0.3, "every": 4})
    assert [step for step in range(1, 13) if method.reference_rate(step)] == [4, 8, 12]
    assert method.reference_rate(8) == 0.3


@pytest.mark.oracle("alignment=kto", "trl 1.16 KTOTrainer")
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
@pytest.mark.parametrize("decrease", [0.0, 50.0])
def test_kto_equals_trl(weights, decrease):
    """If the policy finds other prompts' answers less likely than the reference does, z is clamped to 0."""
    words = single(batches.batch("labelled", 1))
    words["kl_logps"] = words["kl_logps"] - decrease
    loss, gradients = ours("kto", "labelled", words=words, wanted_weight=weights[0], unwanted_weight=weights[1])
    count = len(words["labels"])
    logps = words["logps"].clone().requires_grad_()
    trainer = MagicMock()
    trainer.accelerator, trainer.aux_loss_enabled, trainer.precompute_ref_logps = accelerator(), False, True
    trainer.calculate_KL, trainer.loss_type, trainer.beta = True, "kto", 0.1
    trainer.desirable_weight, trainer.undesirable_weight = weights
    trainer._total_train_tokens = 0
    trainer._compute_kl_logps.return_value = words["kl_logps"]
    ones = torch.ones(count, 2, dtype=torch.long)
    batch = {"input_ids": ones, "attention_mask": ones, "completion_mask": ones, "label": words["labels"]}
    batch |= {"ref_logps": words["ref_logps"], "ref_KL_logps": words["ref_kl_logps"]}
    theirs = KTOTrainer._compute_loss(trainer, Model(logps[:, None], None), batch, False)
    theirs.backward()
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-6)
    assert torch.allclose(gradients["logps"], logps.grad, atol=1e-7)


@pytest.mark.oracle("alignment=orpo", "trl 1.16 ORPOTrainer.odds_ratio_loss")
def test_orpo_equals_trl():
    words = batches.batch("pairs", 2)
    loss, _ = ours("orpo", "pairs", words=words, lam=0.3)
    means = [words[w] / words[f"{w}_length"] for w in ("chosen", "rejected")]
    trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer, *means)
    expected = -words["chosen"].sum() / words["chosen_length"].sum() - losses.mean()
    assert loss == pytest.approx(float(expected), abs=1e-6)  # trl computes in float32


def test_odds_are_accurate_near_certainty():
    """For an almost certain answer, log(1 - p) must not lose its digits by cancellation."""
    words = batches.batch("pairs") | {"chosen": torch.tensor([-1e-9]), "rejected": torch.tensor([-30.0])}
    words |= {"chosen_length": torch.tensor([1]), "rejected_length": torch.tensor([1])}
    _, gradients = ours("orpo", "pairs", words={w: x.double() for w, x in words.items()}, lam=1.0)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
    _, metrics = alignments.build("orpo").loss(*(words[w].double() for w in alignments["orpo"].facts["asks"]["loss"]))
    odds = (-1e-9 - math.log(1e-9)) - (-30.0 - math.log1p(-math.exp(-30.0)))
    assert float(metrics["train/log_odds_ratio"]) == pytest.approx(odds, rel=1e-7)


@pytest.mark.oracle("alignment=cpo", "trl 1.16 CPOTrainer.cpo_loss")
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cpo_equals_trl(smoothing):
    words = batches.batch("pairs", 2)
    loss, _ = ours("cpo", "pairs", words=words, alpha=0.6, beta=0.4, label_smoothing=smoothing)
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.4, loss_type="sigmoid", label_smoothing=smoothing, accelerator=accelerator()
    )
    losses, *_ = CPOTrainer.cpo_loss(trainer, words["chosen"], words["rejected"])
    expected = losses.mean() - 0.6 * words["chosen"].sum() / words["chosen_length"].sum()
    assert loss == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.oracle("alignment=simpo", "trl 1.16 CPOTrainer.cpo_loss, simpo")
def test_simpo_equals_trl():
    words = batches.batch("pairs", 2)
    loss, _ = ours("simpo", "pairs", words=words, beta=1.5, gamma=0.7)
    means = [words[w] / words[f"{w}_length"] for w in ("chosen", "rejected")]
    trainer = SimpleNamespace(
        alpha=0.0, beta=1.5, simpo_gamma=0.7, loss_type="simpo", label_smoothing=0.0, accelerator=accelerator()
    )
    losses, *_ = CPOTrainer.cpo_loss(trainer, *means)
    assert loss == pytest.approx(float(losses.mean()), abs=1e-12)


@pytest.mark.oracle("alignment=slic", "float64 loop")
def test_slic_equals_a_loop():
    words = batches.batch("pairs", 2)
    total = 0.0
    for w, rejected in zip(words["chosen"].tolist(), words["rejected"].tolist(), strict=True):
        total += (2.0 - (w - rejected) if w - rejected < 2.0 else 0.0) - 0.3 * w
    loss, _ = ours("slic", "pairs", words=words, delta=2.0, lam=0.3)
    assert float(loss) == pytest.approx(total / len(words["chosen"]), abs=1e-12)


@pytest.mark.oracle("alignment=ddo", "float64 loop on probabilities")
def test_ddo_equals_a_loop():
    """Discriminator d = p^b / (p^b + q^b) with the target 1 for data and 0 for the reference's samples."""
    words, b, alpha = batches.batch("pairs", 2), 0.5, 1.7
    total = 0.0
    for i in range(len(words["chosen"])):
        p, q, fake_p, fake_q = (math.exp(words[w][i]) for w in ("chosen", "ref_chosen", "rejected", "ref_rejected"))
        total += -math.log(p**b / (p**b + q**b)) - alpha * math.log(fake_q**b / (fake_p**b + fake_q**b))
    loss, _ = ours("ddo", "pairs", words=words, beta=b, alpha=alpha)
    assert float(loss) == pytest.approx(total / len(words["chosen"]), abs=1e-12)


@pytest.mark.oracle("alignment=rrhf", "float64 loop")
def test_rrhf_equals_a_loop():
    words, total = batches.batch("rankings", 1), 0.0
    logps, scores, length = (words[w].tolist() for w in ("logps", "scores", "length"))
    for row in range(len(logps)):
        present = [k for k in range(4) if words["present"][row, k]]
        means = {k: logps[row][k] / length[row][k] for k in present}
        for i, j in itertools.permutations(present, 2):
            if scores[row][i] > scores[row][j]:
                total += max(0.0, means[j] - means[i])
        total -= 0.4 * logps[row][max(present, key=lambda k: scores[row][k])]
    loss, _ = ours("rrhf", "rankings", words=words, lam=0.4)
    assert float(loss) == pytest.approx(total / len(logps), abs=1e-12)


@pytest.mark.oracle("alignment=plackett_luce", "sum over all rankings of a loop in float64; DPO for K = 2")
def test_plackett_luce_is_a_distribution_over_rankings():
    words, beta = batches.batch("rankings", 1), 0.6
    words["present"] = torch.ones_like(words["present"])
    loss, _ = ours("plackett_luce", "rankings", words=words, beta=beta)
    total = 0.0
    for row in range(len(words["logps"])):
        worth = [math.exp(beta * (words["logps"][row, k] - words["ref_logps"][row, k])) for k in range(4)]
        left = sorted(range(4), key=lambda k: -words["scores"][row, k])
        while left:
            total -= math.log(worth[left[0]] / sum(worth[k] for k in left))
            left.pop(0)
    assert float(loss) == pytest.approx(total / len(words["logps"]), abs=1e-12)
    chances = 0.0
    for order in itertools.permutations(range(4)):
        scores = torch.empty(1, 4, dtype=torch.float64)
        scores[0, list(order)] = torch.arange(4, 0, -1, dtype=torch.float64)
        one = {w: x[:1] for w, x in words.items()} | {"scores": scores}
        chances += math.exp(-float(ours("plackett_luce", "rankings", words=one, beta=beta)[0]))
    assert chances == pytest.approx(1, abs=1e-12)
    pair = batches.batch("pairs", 1)
    two = {
        "logps": torch.stack([pair["rejected"], pair["chosen"]], 1),
        "ref_logps": torch.stack([pair["ref_rejected"], pair["ref_chosen"]], 1),
        "scores": torch.tensor([[0.0, 1.0]]).expand(6, 2),
        "length": torch.ones(6, 2),
        "present": torch.ones(6, 2, dtype=torch.bool),
    }
    as_ranking, _ = ours("plackett_luce", "rankings", words=two, beta=beta)
    assert float(as_ranking) == pytest.approx(float(ours("dpo", "pairs", words=pair, beta=beta)[0]), abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_policy_equal_to_reference_gives_log_two(beta):
    words = batches.batch("pairs")
    words |= {"chosen": words["ref_chosen"], "rejected": words["ref_rejected"]}
    assert float(ours("dpo", "pairs", words=words, beta=beta)[0]) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.oracle("alignment=dpo", "closed form: reference x exp(r / beta) / Z on a tabular policy")
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_converges_to_the_tilted_reference(beta):
    """Train on all ordered pairs of five answers, weighted by a Bradley-Terry judge's preference with rewards r.

    The order (i, j) has the weight P(i beats j), and (j, i) the weight 1 - P(i beats j).
    """
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    rewards = torch.randn(5, generator=generator, dtype=torch.float64)
    first, second = torch.tensor(list(itertools.permutations(range(5), 2))).T
    chance = torch.sigmoid(rewards[first] - rewards[second])
    logits, method = reference.clone().requires_grad_(), alignments.build("dpo", {"beta": beta})
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        losses = [
            method.loss(policy[i][None], policy[j][None], reference[i][None], reference[j][None])[0]
            for i, j in zip(first, second, strict=True)
        ]
        total = (torch.stack(losses) * chance).sum()
        total.backward()
        return total

    optimizer.step(closure)
    found, expected = logits.detach().softmax(0), (reference + rewards / beta).softmax(0)
    assert torch.allclose(found, expected, atol=1e-6)


def test_unknown_loss_input_is_refused_at_registration():
    from ablatio.registry.registry import ContractError

    class Odd:
        """L = 0; its second parameter is not a known input."""

        def loss(self, chosen, rejectd):
            return chosen.sum(), {}

    with pytest.raises(ContractError, match=r"`loss` has the parameter `rejectd`.*did you mean rejected"):
        alignments.register("odd_one", paper="arXiv:2305.18290")(Odd)
    assert "odd_one" not in alignments.entries


def test_need_of_a_reference_follows_from_the_signature():
    needs = {e.name for e in alignments if any(w.startswith("ref_") for w in e.facts["asks"]["loss"])}
    assert {"dpo", "kto", "ddo", "wpo"} <= needs
    assert not needs & {"orpo", "cpo", "simpo", "slic", "rrhf", "sft"}
    with pytest.raises(UserError, match="did you mean"):
        alignments["dpp"]
