"""FLOPs of training against torch's counter on real steps: few weights that train, rollouts, references, critics."""

import pytest
import torch
from helpers.policies import made, step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ablatio.cli.size import run as size_command
from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.cost.flops import Work, cost_of
from ablatio.model.cost.parameters import measure
from ablatio.model.peft.apply import tune
from ablatio.registry.kinds import pefts
from ablatio.training.estimate import estimate
from ablatio.training.run_spec import RunSpec

SHAPE = ["model.d_model=48", "model.n_layers=3", "model.n_heads=4", "model.max_len=40", "tokenizer=bytes"]


def counted(work):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


TUNED = ["lora", "dora", "ia3", "adapter", "prefix", "lntuning", "lora peft.targets=[q_proj]", "none"]


@pytest.mark.parametrize("peft", TUNED)
@pytest.mark.parametrize("attention", ["mha", "sliding attention.window=7"])
def test_a_step_costs_what_torch_counts_on_it(peft, attention):
    """A real pass and its gradients on the CPU; the counter knows products of matrices alone, as we do."""
    if peft == "prefix" and attention != "mha":
        pytest.skip("a window takes no keys that stand before the text")
    config = compose_run([*SHAPE, "norm=layernorm", *f"peft={peft}".split(), *f"attention={attention}".split()]).config
    model, cost = build_model(config, 257).train(), cost_of(config, 257)
    tune(model, config, 0)
    tokens = torch.randint(257, (1, 40), generator=torch.Generator().manual_seed(0))
    found = counted(lambda: model(tokens).sum().backward())
    hidden = 3 * 4 * 48 * sum(abs(t - s) >= 7 for t in range(40) for s in range(40)) if "window" in attention else 0
    backward = 2 if peft == "none" or cost.layers_backward > 0 else 0
    assert 40 * cost.train == pytest.approx(found - (1 + backward) * hidden, rel=0.01)


def test_where_all_weights_train_the_backward_pass_is_twice_the_forward_one():
    config = compose_run(SHAPE).config
    size, cost = measure(config, 257), cost_of(config, 257)
    assert cost.train == size.train_flops_per_token == 3 * size.flops_per_token
    assert cost.of(Work.trained(7)) == pytest.approx(7 * cost.train)
    assert cost.of(Work(read=3, read_said=2)) == pytest.approx(3 * cost.layers + 2 * cost.head)


def test_every_method_is_counted():
    """None fails: a method that shapes alone do not tell is counted as if all trained."""
    whole = cost_of(compose_run([*SHAPE, "model.bias=true"]).config, 257)
    for entry in pefts:
        if entry.name not in ("none", "hf"):
            cost = cost_of(compose_run([*SHAPE, "model.bias=true", f"peft={entry.name}"]).config, 257)
            assert cost.layers >= 0.9 * whole.layers and cost.layers_backward > 0, entry.name


@pytest.mark.parametrize(
    "method, knobs",
    [("grpo", {"group": 4}), ("ppo", {"epochs": 2}), ("remax", {}), ("online_dpo", {"writer": "reference"})],
    ids=str,
)
def test_a_policys_steps_cost_what_torch_counts_on_them(method, knobs):
    """Rollouts, the greedy answer, reference, critic and the passes that learn.  Attention is a fiftieth here: it is
    counted at whole rows, and a token that is decoded sees what stands before it alone."""
    task, model = made(method, batch_size=8, method_knobs=knobs, prompt_tokens=12, answer_tokens=16)
    task.stop = task.asking.stop = -1  # so that no row ends before the others
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    found = counted(lambda: [step(task, model, n, optimizer) for n in range(3)])
    cost = cost_of(task.setup.config, task.tokenizer.vocab_size, task.row_length)
    assert cost.of(task.work(3)) == pytest.approx(found, rel=0.07)
    again, _ = made(method, batch_size=8, method_knobs=knobs, prompt_tokens=12, answer_tokens=16)
    again.load_state_dict(task.state_dict())
    assert again.work(3) == task.work(3)


def test_a_reference_is_weighed_and_few_weights_need_few_gradients(capsys):
    plain = estimate(RunSpec(compose_run(SHAPE).config))
    policy = [*SHAPE, "task=policy", "alignment=grpo", "reward=length"]
    whole, few = (estimate(RunSpec(compose_run([*policy, *more]).config)) for more in ([], ["peft=lora"]))
    assert plain["beside"] == 0 and whole["beside"] == whole["weights"] == plain["weights"]
    config = compose_run([*policy, "peft=lora"]).config
    model = build_model(config, 257)
    trainable = tune(model, config, 0).trainable
    assert few["gradients"] == 4 * trainable and few["optimizer"] == pytest.approx(8 * trainable, rel=0.02)
    assert few["weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert few["train_flops_per_token"] < 0.75 * whole["train_flops_per_token"]
    moves = estimate(RunSpec(compose_run([*SHAPE, "task=preference", "alignment=dpo", "source=feedback"]).config))
    assert moves["beside"] == 0  # the reference speaks once
    size_command([*policy, "peft=lora"])
    assert "reference" in capsys.readouterr().out
