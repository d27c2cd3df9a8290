"""`freeze=`: the named weights keep their values bit for bit, counts and FLOPs are of what is left."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.runs import TINY
from safetensors.torch import load_file

import ablatio
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.model.freezing import is_at
from ablatio.model.on_meta import on_meta
from ablatio.training.run_spec import RunSpec

SIZES = ["model.d_model=16", "model.n_layers=3", "model.n_heads=2", "model.max_len=16", "tokenizer=bytes"]


def spec(*words: str) -> RunSpec:
    return RunSpec(compose_run([*SIZES, *words]).config)


def sizes_of(*words: str) -> dict[str, int]:
    """Numbers of parameters by name, of the model without freezing."""
    from ablatio.model.cost.parameters import meta_model

    found = spec(*words)
    with on_meta():
        return {name: p.numel() for name, p in meta_model(found.config, found.vocabulary).named_parameters()}


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        ("embed", ("model.embed_tokens.",)),
        ("embedding", ("model.embed_tokens.",)),
        ("layers.0-1", ("model.layers.0.", "model.layers.1.")),
        ("layers.2,embed", ("model.layers.2.", "model.embed_tokens.")),
        ("layers", ("model.layers.",)),
    ],
)
def test_trainable_parameters_are_those_that_no_pattern_names(patterns: str, prefixes: tuple[str, ...]) -> None:
    names = sizes_of()
    left = sum(size for name, size in names.items() if not name.startswith(prefixes))
    found = spec(f"freeze=[{patterns}]")
    assert 0 < left < sum(names.values())
    assert found.trainable == left and found.parameters == sum(names.values())


def test_roles_and_wildcards_name_weights_in_every_layer() -> None:
    names = sizes_of()
    vectors = sum(size for name, size in names.items() if "norm" in name)
    assert spec("freeze=[vector]").trainable == sum(names.values()) - vectors
    assert spec("freeze=['*norm*']").trainable == sum(names.values()) - vectors
    queries = sum(size for name, size in names.items() if "q_proj" in name)
    assert spec("freeze=[q_proj]").trainable == sum(names.values()) - queries


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("layers.0-3", "model.layers.3.mlp.up_proj.weight", True),
        ("layers.0-3", "model.layers.13.mlp.up_proj.weight", False),
        ("layers.1", "model.layers.11.mlp.up_proj.weight", False),
        ("encoder.layers.1", "encoder.layers.1.mlp.up_proj.weight", True),
        ("encoder.layers.1", "model.layers.1.mlp.up_proj.weight", False),
        ("layers.*.mlp", "model.layers.7.mlp.up_proj.weight", True),
        ("head", "lm_head.weight", True),
        ("layers.0-3.self_attn", "model.layers.2.mlp.up_proj.weight", False),
    ],
)
def test_a_pattern_fits_consecutive_parts_of_a_name(pattern: str, name: str, fits: bool) -> None:
    assert is_at(pattern, name) == fits


def test_flops_are_of_the_backward_passes_that_are_left() -> None:
    """The more of the lowest layers are frozen, the cheaper; with all of them only norm and head run backward."""
    costs = [spec(f"freeze=[embed,{layers}]").cost() for layers in ("vector", "layers.0", "layers.0-1", "layers.0-2")]
    full = spec().cost()
    backward = [full.layers_backward, *(cost.layers_backward for cost in costs)]
    assert backward == sorted(backward, reverse=True) and backward[-1] == 0
    assert {cost.layers for cost in costs} == {full.layers}
    vocabulary = spec().vocabulary
    assert costs[-1].head_backward == 2 * 16 * vocabulary and full.head_backward == 4 * 16 * vocabulary
    # A frozen layer between trained ones still passes gradients on: only those of its weights are saved.
    weights = sum(size for name, size in sizes_of().items() if ".layers.1." in name and "proj" in name)
    counted = spec("freeze=[vector]").cost().layers_backward - spec("freeze=[vector,layers.1]").cost().layers_backward
    assert counted == 2 * weights


class ByHand(pl.Callback):
    """The oracle: switches off gradients of parameters by their exact names, before the optimizer is built."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for name, parameter in pl_module.model.named_parameters():
            parameter.requires_grad_(not name.startswith(self.names))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_weights_stay_and_the_others_train_as_in_a_hand_written_run(
    optimizer: str, tmp_path: Path, text_file: Path
) -> None:
    words = [*TINY, "model.n_layers=2", f"source.path={text_file}", f"out={tmp_path}", f"optimizer={optimizer}"]
    words += ["train.checkpoint_every=6", "train.keep=3"]
    names = ("model.embed_tokens.", "model.layers.0.")
    ours = ablatio.train(*words, "freeze=[embed,layers.0]", "name=ours", quiet=True)
    hand = ablatio.train(*words, "name=hand", callbacks=[ByHand(names)], quiet=True)

    def weights(run: Any, step: int) -> dict[str, torch.Tensor]:
        return load_file(run.folder / f"checkpoints/step-{step:08}.model.safetensors")

    begun, ended, oracle = weights(ours, 6), weights(ours, 12), weights(hand, 12)
    assert ended.keys() == oracle.keys() and all(torch.equal(ended[name], oracle[name]) for name in ended)
    kept = {name for name in ended if torch.equal(begun[name], ended[name])}
    assert kept == {name for name in ended if name.startswith((*names, "lm_head"))}  # the head is tied
    assert ours.summary["trainable_parameters"] < hand.summary["trainable_parameters"]
    assert ours.summary["train_flops"] < hand.summary["train_flops"]


def test_a_pattern_without_a_weight_and_a_model_without_a_trained_one_are_refused(
    tmp_path: Path, text_file: Path
) -> None:
    with pytest.raises(UserError, match=r"no weight is called `embeddin`; did you mean embedding"):
        _ = spec("freeze=[embeddin]").trainable
    for pattern in ("head", "lm_head", "lm_head.weight", "'*_head'"):
        with pytest.raises(UserError, match=r"the same weight as the embedding\n.*try: freeze=\[embed\]"):
            _ = spec(f"freeze=[{pattern}]").trainable
        untied = spec("model.tied=false")
        assert spec(f"freeze=[{pattern}]", "model.tied=false").trainable == untied.trainable - 16 * untied.vocabulary
    with pytest.raises(UserError, match=r"no weight is called `layers\.3`"):
        _ = spec("freeze=[layers.3]").trainable
    words = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "freeze=[matrix,vector,embedding]"]
    with pytest.raises(UserError, match="all weights are frozen"):
        ablatio.train(*words, quiet=True)
    with pytest.raises(UserError, match=r"all weights are frozen.*\n.*freeze="):
        _ = spec("peft=lora", "freeze=[matrix]").trainable
    with pytest.raises(UserError, match=r"all weights are frozen.*\n.*roles\.frozen="):
        ablatio.train(*words[:-1], "peft=lora", "roles.frozen=[matrix]", quiet=True)
    for pattern in ("head", "lm_head", "lm_head.weight", "'*_head'"):
        with pytest.raises(ConfigError, match="cannot be frozen by itself"):
            spec(f"freeze=[{pattern}]", "model.tied=stages(true@0,false@0.5)")
    spec("freeze=[embedding]", "model.tied=stages(true@0,false@0.5)")


def test_a_range_that_ends_behind_the_last_layer_is_refused() -> None:
    """A model of three layers has no layer 3: whoever names it thinks of another model."""
    for pattern, fitting in {"layers.0-3": "layers.0-2", "layers.1-30.mlp": "layers.1-2.mlp"}.items():
        with pytest.raises(UserError, match=rf"ends behind the last layer of the model\n    try: freeze=\[{fitting}\]"):
            _ = spec(f"freeze=[{pattern}]").trainable
        assert 0 < spec(f"freeze=[{fitting}]").trainable < spec().trainable
    # Stacks of two depths: the range ends within one of them.
    two = ("architecture=encoder_decoder", "model.encoder_layers=2", "objective=span_corruption")
    assert spec("freeze=[layers.0-2]", *two).trainable < spec(*two).trainable
