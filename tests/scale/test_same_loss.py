"""Several devices give the losses, the gradient norms and the scores of one device."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from helpers.gangs import TINY, in_one_gang, rows
from safetensors.torch import load_file

from ablatio.registry.kinds import alignments
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import two_ranks

SENTIMENT = ("source=sentiment", "model.max_len=64")
USUAL: dict[str, Sequence[str]] = {
    "pretrain": ("train.accumulate=3", "stabilizer=[clip,skip_step,ema]"),
    "masked_lm": ("architecture=encoder", "objective=masked_lm"),  # ranks have different numbers of targets
    "moe": ("mlp=moe", "mlp.jitter=0"),
    "kto": ("task=preference", "alignment=kto", *SENTIMENT),  # compares the answers of a batch
}
FURTHER: dict[str, Sequence[str]] = {
    "tied_off": ("model.tied=false", "data.document_mask=false"),
    "span_corruption": ("architecture=encoder_decoder", "objective=span_corruption"),
    "multi_token": ("objective=multi_token",),
    "sft": ("task=sft", "source=gsm_symbolic", "task.packing=false", "model.max_len=128"),
    "biased_moe": ("mlp=deepseek_moe", "mlp.bias_rate=0.001"),
    "dpo": ("task=preference", "alignment=dpo", *SENTIMENT),
    "reward": ("task=reward", *SENTIMENT),
    "process_reward": ("task=process_reward", "source=worked_sums", "model.max_len=128"),
    "self_training": (
        "task=self_training",
        "source=worked_sums",
        "model.max_len=128",
        "reward=length",
        "task.answers=2",
        "task.answer_tokens=16",
        "task.held_out=4",
    ),
    "lora": ("peft=lora",),
    "frozen": ("freeze=[embedding]",),
    "value_residual": ("attention=value_residual",),
    "value_embeddings": ("shortcut=value_embeddings",),
    "recomputed": ("checkpointing=full",),
}
DEEPSPEED: dict[str, Sequence[str]] = {"pretrain": ("train.accumulate=3", "stabilizer=[clip]")}
SHARDED_BY_DEEPSPEED = {name: words for name, words in (USUAL | FURTHER).items() if name != "pretrain"}
OPTIMIZERS = (
    "adafactor", "adagrad", "adam", "adam_mini", "ademamix", "cautious_adamw", "dion", "galore", "kl_soap", "lamb",
    "lion", "mars", "muon", "nadam", "normuon", "radam", "schedule_free", "scion", "sgd", "shampoo", "soap",
)  # fmt: skip
DIVIDED: dict[str, Sequence[str]] = {  # heads and features over devices; tests/parts hold the parts by themselves
    "pretrain": ("train.accumulate=3", "stabilizer=[clip,ema]"),
    "masked_lm": ("architecture=encoder", "objective=masked_lm", "attention=gqa", "model.n_heads=4"),
    "sft": (*FURTHER["sft"], "peft=lora", "train.batch_size=3"),
    "shampoo": ("optimizer=shampoo",),  # whole tensors, of which each device has some rows or columns
}
DIVIDED_FURTHER = {
    **{name: FURTHER[name] for name in ("tied_off", "span_corruption", "multi_token", "sft", "dpo", "recomputed")},
    "kto": USUAL["kto"],
    "mqa": ("attention=mqa", "model.bias=true", "match=none", "position=t5"),
    "value_residual": ("attention=value_residual", "position=transformer_xl", "optimizer=lion"),
    "gated": ("attention=gated", "attention.qk_norm=rmsnorm", "position=alibi", "block=macaron"),
    "lora": ("peft=lora", "peft.targets=[q_proj,v_proj,o_proj,down_proj,gate_proj]"),
    "unit_weights": ("stabilizer=[unit_weights]", "activation=scaled_swiglu"),
    "held": ("roles.frozen=stages([matrix,layers.0]@0,[]@0.6)", "stabilizer=[outer,clip]"),
}
TOKENS: dict[str, Sequence[str]] = {
    "pretrain": ("train.accumulate=3", "stabilizer=[clip,skip_step,ema]", "train.batch_size=3", "data.length=31"),
    "sft": FURTHER["sft"],  # rows with padding, and targets on one device alone
    "masked_lm": (*USUAL["masked_lm"], "data.length=31", "train.batch_size=3"),  # tokens see later ones
}
SGD = ("optimizer=sgd", "optimizer.lr=0.3")
TOKENS_FURTHER = {
    "diffusion": ("architecture=encoder", "objective=masked_diffusion", "position=t5", "stabilizer=[clip,ema]"),
    **{name: FURTHER[name] for name in ("tied_off", "multi_token", "value_residual", "recomputed", "lora")},
    "packed_sft": ("task=sft", "source=gsm_symbolic", "model.max_len=128", "optimizer=muon"),
    # By sgd: a sink's gradient can be rounding alone, which adamw divides by its own size.
    "gqa": ("attention=gqa", "model.n_heads=4", "position=alibi", "attention.sinks=true", *SGD),
    "sliding": ("attention=sliding", "attention.window=8", "position=transformer_xl"),
    "long": ("model.max_len=1100", "train.batch_size=1", "train.steps=4", "position=t5", "train.log_every=1"),
}
ROWS = ("strategy.vocabulary=true", "model.vocab_size=260")  # 257 ids and three unused rows
VOCABULARY: dict[str, Sequence[str]] = {
    "pretrain": (
        *ROWS,
        "train.accumulate=2",
        "stabilizer=[clip,ema]",
        "train.label_smoothing=0.1",
        "head=softcap",
        "head.cap=2",
    ),
    "untied": (*ROWS, "model.tied=false", "optimizer=lion", "train.batch_size=3", "objective=multi_token"),
    "masked_lm": (*ROWS, "architecture=encoder", "objective=masked_lm", "checkpointing=full"),
    "sft": (*FURTHER["sft"], *ROWS[:1], "model.vocab_size=262", "stabilizer=[clip,embedding_shrink]"),
    "dpo": (*FURTHER["dpo"], *ROWS[:1], "model.vocab_size=262"),
}
WHOLE = "strategy.microbatches=1"  # for parts that depend on the whole batch
LAYERS: dict[str, Sequence[str]] = {
    "pretrain": ("train.accumulate=3", "stabilizer=[clip,skip_step,ema]"),
    "sft": (*FURTHER["sft"], "train.batch_size=6", "model.n_layers=3", "strategy.schedule=gpipe"),
}
LAYERS_FURTHER = {
    **{name: FURTHER[name] for name in ("tied_off", "multi_token", "recomputed", "lora", "frozen")},
    **{name: DIVIDED_FURTHER[name] for name in ("unit_weights", "held")},
    "masked_lm": (*USUAL["masked_lm"], "position=t5"),  # each stage has a part of the gradient of the position's table
    "moe": (*USUAL["moe"], WHOLE),
    "biased_moe": (*FURTHER["biased_moe"], "train.accumulate=2", WHOLE),
    "prefix_lm": ("architecture=prefix", "objective=prefix_lm", "strategy.microbatches=2"),
    "muon": TOKENS_FURTHER["packed_sft"],
    "streams": ("placement=hyper_connections", "model.n_layers=3", "strategy.schedule=gpipe"),
    "quantized": ("peft=lora", "quantization=int8"),
    "schedule_free": ("optimizer=schedule_free", "schedule=constant", "schedule.warmup=0"),
    "ramp": (
        "stabilizer=[batch_ramp,clip]",
        "stabilizer.batch_ramp.tokens=600",
    ),  # rows that microbatches do not divide
}
HYBRID, GRID = ("strategy=fsdp", "strategy.copies=2"), ("strategy=tensor", "strategy.degree=2")  # of 4 devices
ON_GRID = {
    **{name: DIVIDED_FURTHER[name] for name in ("mqa", "gated", "lora", "unit_weights", "held", "recomputed", "kto")},
    **{name: FURTHER[name] for name in ("tied_off", "span_corruption", "multi_token")},
    "uneven": ("model.d_model=36", "model.d_ff=70", "match=none", "position=t5", "train.batch_size=6"),
    "outer": ("stabilizer=[outer,clip]", "stabilizer.outer.every=2"),
    **{f"vocabulary_{name}": VOCABULARY[name] for name in ("pretrain", "masked_lm")},
    "sft": (*FURTHER["sft"], "peft=lora", "train.batch_size=4"),
}
IN_COPIES = {name: (USUAL | FURTHER)[name] for name in ("masked_lm", "moe", "kto", "lora", "recomputed", "tied_off")}
POLICY = (  # answers end early: one symbol in 96 ends them
    "task=policy", "task.prompt_tokens=8", "task.answer_tokens=16", "task.held_out=4", "source=arithmetic",
    "tokenizer=symbols", "schedule.warmup=0",
)  # fmt: skip
LENGTH = ("reward=length", "reward.target=8")
POLICIES: dict[str, Sequence[str]] = {
    "grpo": (*POLICY, *LENGTH, "alignment=grpo", "alignment.epochs=2", "train.accumulate=2"),
    "ppo": (*POLICY, "alignment=ppo", "alignment.minibatches=2", "reward=process", "reward.function=length"),
}
METHODS = {
    e.name: (*POLICY, *LENGTH, f"alignment={e.name}") for e in alignments if e.facts["data"] == "prompts"
}  # fmt: skip
POLICIES_FURTHER = METHODS | {
    "compared": (*POLICY, "alignment=grpo", "reward=ranking"),  # eight answers to one prompt, four on each rank
    "resampled": (*POLICY, *LENGTH, "alignment=dapo", "alignment.group=2", "task.answer_tokens=4"),
    "easy_left_out": (*METHODS["rpt"], "alignment.least_entropy=2.766"),
    "of_the_reference": (*METHODS["online_dpo"], "alignment.writer=reference", "alignment.pairs=all"),
}
DROPPED = {  # updates are dropped, which DeepSpeed's engine does not follow
    "stopped": (*METHODS["ppo"], "alignment.stop_kl=1e-4", "alignment.stop_drops=true", "alignment.stop_by=k1"),
    "best_of": (*METHODS["rejection_sampling"], "alignment.best_of=4"),
}
# Sums over ranks round otherwise, and Adam divides an entry of a gradient by its own size: entries that are rounding
# alone move by as much as others.
LARGEST = {"sgd": 1e-7, "adamw": 2e-4}
# These orthogonalize or invert nearly singular matrices: the rounding of a sum over two ranks grows 100-fold; the
# eigenbases of soap are arbitrary where the first gradients have no rank.  ddp, with whole updates, shows the same.
LOOSE = dict.fromkeys(("dion", "galore", "muon", "normuon", "scion", "shampoo"), 1e-3)
LOOSE |= {"soap": 2e-2, "kl_soap": 2e-2}
LOOSE |= {"adagrad": 1e-4}  # its first update is the sign of the gradient, of entries that are rounding alone too


def train(folder: Path, cases: Mapping[str, Sequence[str]], *strategy: str, ranks: int = 1) -> None:
    """Train all cases in one process per rank; one device knows no setting of a strategy."""
    folder.mkdir()
    listed = []
    for name, words in cases.items():
        given = words if ranks > 1 else [word for word in words if "strategy." not in word]
        chosen = {word.partition("=")[0] for word in words if word.startswith("tokenizer=")}
        usual = [word for word in TINY if word.partition("=")[0] not in chosen]
        listed.append([name, [*usual, *given, *strategy, f"out={folder}", f"name={name}"]])
    in_one_gang(folder / "log", listed, ranks)


def same_on_two_ranks(folder: Path, cases: Mapping[str, Sequence[str]], strategy: str) -> None:
    """Each case has the metrics of one device on two, with this strategy."""
    train(folder / "one", cases)
    train(folder / "two", cases, strategy, "trainer.devices=2", ranks=2)
    compare(folder / "one", folder / "two", cases)


def compare(one: Path, other: Path, cases: Mapping[str, Sequence[str]]) -> None:
    for name, words in cases.items():
        chosen = (word.removeprefix("optimizer=") for word in words)
        tolerance = max(LOOSE.get(word, 1e-5) for word in chosen)
        first, second = rows(one / name), rows(other / name)
        assert len(first) == len(second) > 5
        for own, theirs in zip(first, second, strict=True):
            assert own.keys() == theirs.keys()
            for key, value in own.items():
                wanted = pytest.approx(value, abs=tolerance, rel=tolerance)
                assert theirs[key] == wanted, f"{name}: {key} at step {own['step']}"


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_tasks(tmp_path: Path, strategy: str) -> None:
    same_on_two_ranks(tmp_path, USUAL, f"strategy={strategy}")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor"])
def test_policies(tmp_path: Path, strategy: str) -> None:
    """Each rank draws, scores and trains on its own answers, with the random numbers that one device draws with."""
    same_on_two_ranks(tmp_path, POLICIES, f"strategy={strategy}")


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "tensor"])
def test_weights_of_a_policy(tmp_path: Path, strategy: str) -> None:
    """Float32 rounding where an update is linear in the gradient; more in few entries where it is a quotient."""
    rates = {"sgd": "optimizer.lr=0.3", "adamw": "optimizer.lr=1e-2"}
    cases = {name: (*POLICIES["grpo"], f"optimizer={name}", rate) for name, rate in rates.items()}
    train(tmp_path / "one", cases)
    train(tmp_path / "two", cases, f"strategy={strategy}", "trainer.devices=2", ranks=2)
    for name in cases:
        one, two = (load_file(max((tmp_path / run / name).rglob("*.model.safetensors"))) for run in ("one", "two"))
        apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        assert float(apart.max()) < LARGEST[name], name
        assert float((apart > 1e-6).float().mean()) < 1e-3, name


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor", "zero1", "zero2", "zero3"])
def test_all_policies(tmp_path: Path, strategy: str) -> None:
    cases = POLICIES_FURTHER
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
        cases = cases | {"ppo": POLICIES["ppo"], "grpo": POLICIES["grpo"]}
    else:
        cases = cases | DROPPED
    if strategy == "tensor":  # its answers have equal log-probabilities up to rounding, and it counts which is larger
        cases = {name: words for name, words in cases.items() if name != "online_dpo"}
    same_on_two_ranks(tmp_path, cases, f"strategy={strategy}")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("strategy", ["tensor", "context", "pipeline"])
def test_divided(tmp_path: Path, strategy: str) -> None:
    """Every device has all rows: some heads and features of each layer, some tokens of each row, or some layers."""
    cases = {"tensor": DIVIDED, "context": TOKENS, "pipeline": LAYERS}[strategy]
    same_on_two_ranks(tmp_path, cases, f"strategy={strategy}")


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["tensor", "context", "pipeline"])
def test_further_divided(tmp_path: Path, strategy: str) -> None:
    cases = {"tensor": DIVIDED_FURTHER, "context": TOKENS_FURTHER, "pipeline": LAYERS_FURTHER}[strategy]
    same_on_two_ranks(tmp_path, cases, f"strategy={strategy}")


@pytest.mark.long
def test_vocabulary_over_devices(tmp_path: Path) -> None:
    """Embedding and head by rows of ids: losses, scores of every token, and logits where a task asks for them."""
    same_on_two_ranks(tmp_path, VOCABULARY, "strategy=tensor")


@pytest.mark.slow
def test_steps_by_gpipe() -> None:
    """Steps, gradient norms and checkpoint of one device; the contract suite has those of the default, 1f1b."""
    one, found = two_ranks.one_device(), two_ranks.train(REGISTRIES["strategy"]["pipeline"], {"schedule": "gpipe"})
    assert found.losses == pytest.approx(one.losses, abs=1e-5)
    assert found.norms == pytest.approx(one.norms, rel=1e-5)
    assert found.tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_a_stage_between(tmp_path: Path) -> None:
    """Of three stages the second has neither embedding nor head; first and last sum the gradients of a tied matrix."""
    one = {
        "tied": ("model.n_layers=4", "position=t5", "train.batch_size=6", "stabilizer=[clip,ema]"),
        "moe": (*USUAL["moe"], "model.n_layers=3", "model.tied=false"),
    }
    two = {"tied": one["tied"], "moe": (*one["moe"], WHOLE)}
    train(tmp_path / "one", one)
    train(tmp_path / "three", two, "strategy=pipeline", "trainer.devices=3", ranks=3)
    compare(tmp_path / "one", tmp_path / "three", one)


@pytest.mark.long
def test_two_groups_of_two(tmp_path: Path) -> None:
    """Four devices: two groups divide weights each, or two divide the layers of a group and groups share rows."""
    one = {"copies": USUAL["pretrain"], "grid": DIVIDED["pretrain"]}
    four = {"copies": (*one["copies"], *HYBRID), "grid": (*one["grid"], *GRID)}
    train(tmp_path / "one", one)
    train(tmp_path / "four", four, "trainer.devices=4", ranks=4)
    compare(tmp_path / "one", tmp_path / "four", one)


@pytest.mark.long
@pytest.mark.parametrize(("cases", "mesh"), [(ON_GRID, GRID), (IN_COPIES, HYBRID)], ids=["grid", "copies"])
def test_further_on_four(tmp_path: Path, cases: Mapping[str, Sequence[str]], mesh: Sequence[str]) -> None:
    train(tmp_path / "one", cases)
    train(tmp_path / "four", cases, *mesh, "trainer.devices=4", ranks=4)
    compare(tmp_path / "one", tmp_path / "four", cases)


@pytest.mark.long
@pytest.mark.parametrize(("mesh", "ranks"), [(HYBRID, 4), (GRID, 4), (("strategy=tensor",), 2)])
def test_optimizers_on_meshes(tmp_path: Path, mesh: Sequence[str], ranks: int) -> None:
    """Owners of whole tensors get parts that lie anywhere in them, each part once."""
    cases = {name: [f"optimizer={name}", "schedule=constant", "schedule.warmup=0"] for name in OPTIMIZERS}
    train(tmp_path / "one", cases)
    train(tmp_path / "many", cases, *mesh, f"trainer.devices={ranks}", ranks=ranks)
    compare(tmp_path / "one", tmp_path / "many", cases)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_further_tasks_and_parts(tmp_path: Path, strategy: str) -> None:
    same_on_two_ranks(tmp_path, FURTHER, f"strategy={strategy}")


@pytest.mark.long
def test_optimizers_on_sharded_weights(tmp_path: Path) -> None:
    """Those of single entries work on rows, the others on whole tensors at their owners."""
    cases = {name: [f"optimizer={name}", "schedule=constant", "schedule.warmup=0"] for name in OPTIMIZERS}
    same_on_two_ranks(tmp_path, cases, "strategy=fsdp")


@pytest.mark.long
def test_layers_with_weights_of_16_bits(tmp_path: Path) -> None:
    """Other roundings than autocast's of one device, of the same size; weights and state are those of 32 bits."""
    one = {
        "pretrain": ("train.accumulate=2", "stabilizer=[clip,ema]", "trainer.precision=bf16"),
        "recomputed": ("checkpointing=full", "position=alibi", "model.tied=false", "trainer.precision=bf16"),
    }
    two = {name: (*words, "strategy.gathered=bf16") for name, words in one.items()}
    train(tmp_path / "one", one)
    train(tmp_path / "two", two, "strategy=fsdp", "trainer.devices=2", ranks=2)
    for name in one:
        for own, theirs in zip(rows(tmp_path / "one" / name), rows(tmp_path / "two" / name), strict=True):
            assert theirs == pytest.approx(own, rel=0.02), name
        held = [load_file(next((tmp_path / run / name).rglob("*.model.safetensors"))) for run in ("one", "two")]
        assert all(tensor.dtype == torch.float32 for tensor in held[1].values())
        assert any((a - b).abs().max() > 1e-6 for a, b in zip(held[0].values(), held[1].values(), strict=True))
        # In bfloat16 a weight near 1 would move in steps of 0.004.
        moved = held[1]["model.layers.0.mlp.up_proj.weight"]
        assert (moved != moved.bfloat16().float()).float().mean() > 0.9


@pytest.mark.long
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_weights_with_one_row(tmp_path: Path, offload: str) -> None:
    """One rank holds them; the other has tensors without numbers in their place, which no optimizer minds."""
    row = ("model.n_heads=1", "attention.sinks=true", "position=kerple", "schedule=constant", "schedule.warmup=0")
    one = {name: (*row, f"optimizer={name}") for name in ("adamw", "adam", "adagrad", "sgd", "lion", "muon", "nadam")}
    two = {name: (*words, f"strategy.offload={offload}") for name, words in one.items()}
    train(tmp_path / "one", one)
    train(tmp_path / "two", two, "strategy=fsdp", "trainer.devices=2", ranks=2)
    compare(tmp_path / "one", tmp_path / "two", one)


@pytest.mark.long
def test_optimizer_state_on_the_host(tmp_path: Path) -> None:
    """Updates of single entries, of whole tensors by their owners, and by DeepSpeed's engine."""
    pytest.importorskip("deepspeed")
    one = {"rows": USUAL["pretrain"], "muon": ("optimizer=muon", "schedule=constant", "schedule.warmup=0")}
    two = {name: (*words, "strategy=fsdp") for name, words in one.items()}
    for strategy in ("zero1", "zero2", "zero3"):
        one[strategy] = DEEPSPEED["pretrain"]
        two[strategy] = (*one[strategy], f"strategy={strategy}")
    train(tmp_path / "one", one)
    train(tmp_path / "two", two, "strategy.offload=cpu", "trainer.devices=2", ranks=2)
    compare(tmp_path / "one", tmp_path / "two", one)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed(tmp_path: Path, strategy: str) -> None:
    pytest.importorskip("deepspeed")
    cases = DEEPSPEED | (SHARDED_BY_DEEPSPEED if strategy == "zero3" else {})
    same_on_two_ranks(tmp_path, cases, f"strategy={strategy}")
