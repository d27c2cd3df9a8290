"""What several devices cannot do exactly is refused before a tensor is made, with a command that works."""

from pathlib import Path

import pytest
from helpers.gangs import TINY, TWO, finished

from ablatio.config.compose import compose_run
from ablatio.config.packages import check_packages
from ablatio.errors import ConfigError, UserError
from ablatio.registry import kinds, packages
from ablatio.training import rank_environment

POLICY = ("task=policy", "reward=length", "task.prompt_tokens=8", "task.answer_tokens=16")
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
    "heads that do not divide": (("strategy=tensor", "trainer.devices=2", "model.n_heads=3", "model.d_model=48"),
                                 "strategy=fsdp"),
    "key heads that do not divide": (("strategy=tensor", "trainer.devices=2", "attention=gqa", "model.n_heads=4",
                                      "attention.n_kv_heads=1"), "strategy=fsdp"),
    "a width that does not divide": (("strategy=tensor", "trainer.devices=2", "model.d_ff=129", "match=none"),
                                     "strategy=fsdp"),
    "heads that a group does not divide": (("strategy=tensor", "strategy.degree=2", "trainer.devices=4",
                                            "model.n_heads=3", "model.d_model=48"), "strategy=fsdp"),
    "layers over groups that differ": (("strategy=tensor", "strategy.degree=3", "trainer.devices=4"),
                                       "strategy.degree=2"),
    "a vocabulary that does not divide": (("strategy=tensor", "strategy.vocabulary=true", "trainer.devices=2",
                                           "model.vocab_size=259"), "strategy.vocabulary=false"),
    "a teacher's head": (("strategy=tensor", "strategy.vocabulary=true", "trainer.devices=2",
                         "objective=distillation", "objective.teacher=runs/teacher"), "strategy.vocabulary=false"),
    "adapters of a divided vocabulary": (("strategy=tensor", "strategy.vocabulary=true", "trainer.devices=2",
                                          "peft=lora"), "strategy.vocabulary=false"),
    "weights of 16 bits in 32": (("strategy=fsdp", "strategy.gathered=bf16", "trainer.devices=2",
                                  "trainer.precision=32"), "trainer.precision=bf16"),
    "groups that differ": (("strategy=fsdp", "strategy.copies=3", "trainer.devices=4"), "strategy.copies=2"),
    "rows that groups do not divide": (("strategy=tensor", "strategy.degree=2", "trainer.devices=4",
                                        "train.batch_size=7"), "train.batch_size=8"),
    "all weights together": (("strategy=tensor", "trainer.devices=2", "optimizer=prodigy"), "optimizer=adamw"),
    "heads that are mixed": (("strategy=tensor", "trainer.devices=2", "attention=talking_heads"), "strategy=fsdp"),
    "experts": (("strategy=tensor", "trainer.devices=2", "mlp=moe"), "strategy=fsdp"),
    "a norm over all heads": (("strategy=tensor", "trainer.devices=2", "attention.qk_norm=whole_rmsnorm"),
                              "strategy=fsdp"),
    "dropout of weights": (("strategy=tensor", "trainer.devices=2", "model.dropout=0.1"), "model.dropout=0"),
    "an undeclared adapter": (("strategy=tensor", "trainer.devices=2", "peft=dora"), "strategy=fsdp"),
    "an undeclared attention in one layer": (("strategy=tensor", "trainer.devices=2", "layers.at.attention={1: nsa}"),
                                             "layers.at.attention=null"),
    "tokens of a source that is read in both directions": (
        ("strategy=context", "trainer.devices=2", "architecture=prefix", "objective=unilm"), "strategy=fsdp"),
    "a state along the text": (("strategy=context", "trainer.devices=2", "attention=gated_deltanet", "position=none"),
                               "strategy=fsdp"),
    "angles by the length of the text": (("strategy=context", "trainer.devices=2", "position.scaling=dynamic"),
                                         "strategy=fsdp"),
    "answers that are compared": (("strategy=context", "trainer.devices=2", "task=preference", "alignment=dpo",
                                   "source=sentiment"), "strategy=fsdp"),
    "more stages than layers": (("strategy=pipeline", "trainer.devices=4"), "strategy=fsdp"),
    "parts of a batch that do not divide": (("strategy=pipeline", "trainer.devices=2", "strategy.microbatches=3"),
                                            "strategy.microbatches=null"),
    "two stacks": (("strategy=pipeline", "trainer.devices=2", "architecture=encoder_decoder",
                    "objective=span_corruption"), "strategy=fsdp"),
    "skips between layers": (("strategy=pipeline", "trainer.devices=2", "block=unet"), "strategy=fsdp"),
    "shortcuts over layers": (("strategy=pipeline", "trainer.devices=2", "shortcut=value_embeddings"), "strategy=fsdp"),
    "values of the first layer": (("strategy=pipeline", "trainer.devices=2", "attention=value_residual"),
                                  "strategy=fsdp"),
    "layers that share weights": (("strategy=pipeline", "trainer.devices=2", "model.distinct_layers=1"),
                                  "model.distinct_layers=null"),
    "virtual tokens in all layers": (("strategy=pipeline", "trainer.devices=2", "peft=prefix"), "strategy=fsdp"),
    "loads of experts in parts of a batch": (("strategy=pipeline", "trainer.devices=2", "mlp=moe"),
                                             "strategy.microbatches=1"),
    "answers that stages would compare": (("strategy=pipeline", "trainer.devices=2", "task=preference",
                                           "alignment=dpo", "source=sentiment"), "strategy=fsdp"),
    "tokens of answers": (("strategy=context", "trainer.devices=2", *POLICY, "alignment=grpo"), "strategy=fsdp"),
    "dropped updates": (("strategy=zero2", "trainer.devices=2", *POLICY, "alignment=ppo", "alignment.stop_drops=true"),
                        "strategy=fsdp"),
    "no updates": (("strategy=zero1", "trainer.devices=2", *POLICY, "alignment=rejection_sampling",
                    "alignment.best_of=4"), "strategy=fsdp"),
    "a policy over stages": (("strategy=pipeline", "trainer.devices=2", *POLICY, "alignment=grpo"), "strategy=fsdp"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_fix(case: str) -> None:
    words, fix = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        compose_run([*TINY, *words])
    assert f"try: {fix}" in str(error.value)


def test_a_fix_drops_the_knobs_of_what_it_replaces() -> None:
    words = ("strategy=tensor", "strategy.degree=2", "trainer.devices=4", "mlp=moe")
    with pytest.raises(ConfigError) as error:
        compose_run([*TINY, *words])
    command = str(error.value).partition("This runs: ablatio train ")[2]
    assert "strategy=fsdp" in command and "degree" not in command


def test_a_task_for_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task of ours declares it; a task of a plugin may."""
    monkeypatch.setitem(kinds.tasks["pretrain"].facts, "several_devices", False)
    with pytest.raises(ConfigError, match="task=pretrain trains on one device") as error:
        compose_run([*TINY, *TWO])
    assert "try: trainer.devices=1" in str(error.value)


def test_a_strategy_on_one_device_is_one_device() -> None:
    compose_run([*TINY, "strategy=fsdp", "train.batch_size=3", "optimizer=prodigy", "schedule=constant"])


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_without_deepspeed(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a run has a folder; one device needs no engine."""
    monkeypatch.setattr(packages, "_is_installed", lambda module: module != "deepspeed")
    words = [*TINY, f"strategy={strategy}", "source=sotu"]
    with pytest.raises(ConfigError) as error:
        check_packages([compose_run([*words, "trainer.devices=2"]).config])
    assert f"{strategy} needs the package deepspeed" in str(error.value)
    assert "try: pip install 'ablatio[deepspeed]'" in str(error.value)
    check_packages([compose_run([*words, "trainer.devices=1"]).config])


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("RANK", "2"), ("MASTER_PORT", "")])
def test_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, text in {"RANK": "0", "WORLD_SIZE": "2", name: value}.items():
        monkeypatch.setenv(key, text)
    with pytest.raises(UserError, match=name):
        rank_environment.from_environment()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_weights_without_a_gradient_in_an_engine(tmp_path: Path, strategy: str) -> None:
    """A reward model does not use an untied head: torch's optimizers leave it as it is, and in a vector it decays."""
    pytest.importorskip("deepspeed")
    done = finished(*TINY, f"strategy={strategy}", "trainer.devices=2", "task=reward", "source=sentiment",
                    "model.max_len=64", "model.tied=false", f"out={tmp_path}", "name=run")  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no gradient reaches lm_head.weight" in done.stderr and "try: strategy=fsdp" in done.stderr


def test_a_map_of_all_logits_of_a_token_on_a_divided_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option of ours is one; a plugin's is, unless it says the fact `elementwise`."""
    words = [*TINY, "strategy=tensor", "strategy.vocabulary=true", "trainer.devices=2", "model.vocab_size=260"]
    compose_run([*words, "head=softcap"])
    monkeypatch.setitem(kinds.heads["softcap"].facts, "elementwise", False)
    with pytest.raises(ConfigError, match=r"head=softcap maps all logits(.|\n)*try: .*strategy.vocabulary=false"):
        compose_run([*words, "head=softcap"])
