"""Weight decay, betas and eps of a role in place of the optimizer's."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics
from helpers.support import model_config

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
from ablatio.model.build import build_model
from ablatio.model.parameter_roles import apply_own, apply_rates, describe, groups_by_role
from ablatio.registry.kinds import optimizers
from ablatio.training.learning_rates import own_settings

OWN = ["roles.head_betas=[0.5,0.8]", "roles.embedding_weight_decay=0.3", "roles.vector_weight_decay=0.2",
       "roles.matrix_eps=0.01"]  # fmt: skip


def test_steps_are_those_of_torchs_adamw_with_settings_for_each_role() -> None:
    roles = compose_run([*OWN, "model.tied=false"]).config["roles"]
    model = build_model(model_config(tied=False, norm="layernorm"), 20, seed=1)
    other = copy.deepcopy(model)

    def rate(info: object) -> float:
        return 0.5 if info.role == "embedding" else 1.0

    common = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = optimizers.build("adamw", common, groups=groups_by_role(model, rate))
    apply_own(ours, model, own_settings(roles))
    apply_rates(ours, model, rate)
    settings = {
        "matrix": {"eps": 0.01},
        "vector": {"weight_decay": 0.2},
        "head": {"betas": (0.5, 0.8)},
        # The rate of a role leaves its decay per step as it is.
        "embedding": {"weight_decay": 0.6, "lr": 0.005},
    }
    groups = [{"params": [p], **common, **settings[info.role]} for p, info in describe(other)]
    theirs = torch.optim.AdamW(groups)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_setting_that_the_optimizer_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"roles\.head_betas: optimizer=sgd has no betas\n.*roles\.head_betas=null"):
        compose_run(["optimizer=sgd", "roles.head_betas=[0.5,0.8]"])
    with pytest.raises(ConfigError, match=r"roles\.head_betas"):
        compose_run(["roles.head_betas=[0.5,1]"])


@pytest.mark.slow
def test_a_run_with_them_differs_and_resumes_bit_for_bit(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.steps=8", "model.tied=false"]
    plain = ablatio(["train", *settings, "name=plain"], tmp_path / "log")
    assert plain.code == 0, plain.err
    settings += [*OWN, "data.order=coprime"]
    whole = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    assert metrics(cut_and_resumed(settings, tmp_path)) == metrics(tmp_path / "whole") != metrics(tmp_path / "plain")
