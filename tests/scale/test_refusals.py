"""What several devices cannot do exactly is refused before a tensor is made, with a command that works."""

import pytest
from helpers.gangs import TINY

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.training import rank_environment

REFUSED = {
    "devices without a strategy": (("trainer.devices=2",), "strategy=ddp"),
    "rows that do not divide": (("strategy=ddp", "trainer.devices=2", "train.batch_size=5"), "train.batch_size=6"),
    "sampled targets": (("strategy=ddp", "trainer.devices=2", "optimizer=sophia"), "optimizer=adamw"),
    "a sum over all weights": (("strategy=fsdp", "trainer.devices=2", "optimizer=prodigy"), "optimizer=adamw"),
    "whole tensors in one vector": (("strategy=zero1", "trainer.devices=2", "optimizer=muon"), "strategy=fsdp"),
    "shared layers": (("strategy=fsdp", "trainer.devices=2", "model.distinct_layers=1"), "model.distinct_layers=null"),
    "compiled layers": (("strategy=fsdp", "trainer.devices=2", "trainer.compile=true"), "trainer.compile=false"),
    "matrices in zero3": (("strategy=zero3", "trainer.devices=2", "optimizer=muon"), "strategy=fsdp"),
    "norms of matrices": (("strategy=zero1", "trainer.devices=2", "optimizer.hyperball=true"), "strategy=fsdp"),
    "averages in the engine": (("strategy=zero3", "trainer.devices=2", "stabilizer=[clip,ema]"), "strategy=fsdp"),
    "exchanged copies": (("strategy=fsdp", "strategy.offload=cpu", "trainer.devices=2", "optimizer=schedule_free",
                          "schedule=constant", "schedule.warmup=0"), "strategy.offload=none"),
    "skipped steps": (("strategy=zero2", "trainer.devices=2", "stabilizer=[skip_step]"), "strategy=fsdp"),
    "a policy": (("strategy=ddp", "trainer.devices=2", "task=policy", "alignment=grpo", "reward=length"),
                 "trainer.devices=1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_fix(case: str) -> None:
    words, fix = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        compose_run([*TINY, *words])
    assert f"try: {fix}" in str(error.value)


def test_a_strategy_on_one_device_is_one_device() -> None:
    compose_run([*TINY, "strategy=fsdp", "train.batch_size=3", "optimizer=prodigy", "schedule=constant"])


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("RANK", "2"), ("MASTER_PORT", "")])
def test_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, text in {"RANK": "0", "WORLD_SIZE": "2", name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(UserError, match=name):
        rank_environment.from_environment()
