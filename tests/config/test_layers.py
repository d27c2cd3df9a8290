"""Options per layer: how they are written, what they mean, and what is refused before a model is built."""

import pytest

from ablatio.config.compose import compose_run
from ablatio.config.compose_many import Composer
from ablatio.errors import ConfigError
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES
from ablatio.training.run_folder import run_id


def layers(*overrides: str) -> object:
    return compose_run(overrides).config.get("layers")


def names(kind: str, *overrides: str) -> list[str]:
    config = compose_run(overrides).config
    return [str(node["name"]) for node in per_layer.nodes(config, REGISTRIES[kind], config["model"]["n_layers"])]


def test_cycle_and_single_layers() -> None:
    assert names("attention", "layers.attention=[gated_deltanet*3,mha]", "model.n_layers=6") == [
        *["gated_deltanet"] * 3, "mha", *["gated_deltanet"] * 2,
    ]  # fmt: skip
    assert names("mlp", "layers.at.mlp={0: none, -1: moe}") == ["none", "dense", "dense", "moe"]
    both = names("attention", "layers.attention=[sliding,mha]", "layers.at.attention={-1: none}")
    assert both == ["sliding", "mha", "sliding", "none"]


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("[mha,mha]", None),  # the run's own option
        ("[sliding,sliding,sliding]", ["sliding"]),
        ("sliding", ["sliding"]),
        ("[sliding,mha,sliding,mha]", ["sliding", "mha"]),
        ("[sliding*2,sliding,mha]", ["sliding*3", "mha"]),
        ("[{sliding: {window: 8}}, mha]", [{"sliding": {"window": 8}}, "mha"]),
        ("[{sliding*2: {window: 8}}, mha]", [{"sliding*2": {"window": 8}}, "mha"]),
    ],
)
def test_one_meaning_has_one_form(written: str, short: object) -> None:
    """So arms that are written differently and mean the same are one run."""
    found = layers(f"layers.attention={written}")
    assert found == (None if short is None else {"attention": short})
    again = [] if short is None else [f"layers.attention={written}"]
    assert run_id(compose_run([f"layers.attention={written}"]).config) == run_id(compose_run(again).config)


def test_without_layers_nothing_changes() -> None:
    assert "layers" not in compose_run([]).config
    assert "layers" not in compose_run([]).public


def test_knobs_of_the_run_hold_in_each_layer_that_has_them() -> None:
    config = compose_run(
        ["attention.qk_norm=rmsnorm", "layers.attention=[{sliding: {window: 16}},retention,mha]", "model.n_layers=3"]
    ).config
    sliding, retention, mha = per_layer.nodes(config, REGISTRIES["attention"], 3)
    assert (sliding["qk_norm"], mha["qk_norm"], sliding["window"]) == ("rmsnorm", "rmsnorm", 16)
    assert "qk_norm" not in retention
    groups = compose_run(["attention=gqa", "layers.attention=[sliding,gqa]"]).config
    sliding, gqa = per_layer.nodes(groups, REGISTRIES["attention"], 2)
    assert sliding["n_kv_heads"] == gqa["n_kv_heads"] == REGISTRIES["attention"]["gqa"].defaults["n_kv_heads"]


def test_arms_of_a_sweep_compose_as_single_runs_do() -> None:
    composer = Composer()
    for overrides in (
        ["layers.attention=[sliding*3,mha]"],
        ["layers.at.mlp={0: none}", "seed=2"],
        ["layers.norm=null"],
    ):
        many, one = composer.compose(overrides), compose_run(overrides)
        assert (many.config, many.public) == (one.config, one.public)


REFUSED = {
    "a list longer than the depth": (["layers.attention=[sliding*9,mha]"], "lists 10 layers"),
    "a layer that does not exist": (["layers.at.mlp={12: none}"], "there is no layer 12"),
    "a layer twice": (["layers.at.mlp={1: none, -3: moe}"], "names layer 1 twice"),
    "no number": (["layers.at.mlp={first: none}"], "expected numbers of layers"),
    "an unknown option": (["layers.attention=[slidng]"], "did you mean sliding?"),
    "an unknown knob": (["layers.attention=[{sliding: {windw: 4}}]"], "no knob `windw`; did you mean window?"),
    "a wrong value": (["layers.attention=[{sliding: {window: -4}}]"], "sliding.window: expected a value"),
    "two options in one entry": (["layers.attention=[{sliding: {}, mha: {}}]"], "expected one option"),
    "a wrong count": (["layers.attention=['sliding*x']"], "expected a number of layers after `*`"),
    "a kind of the whole run": (["layers.optimizer=[adamw]"], "`optimizer` is the same in all layers"),
    "nothing": (["layers.attention=[]"], "expected at least one option"),
    "a position on the embeddings": (["layers.position=[rope,learned]"], "acts on the embeddings"),
    "an option that stands nowhere": (["attention=gqa", "layers.attention=[sliding]"], "stands in no layer"),
    "a rule, with its layer": (["layers.attention=[mha*2,convolution]"], "layer 2: position=rope rotates"),
    "a layer of nothing": (["layers.at.mlp={2: none}", "layers.at.attention={2: none}"], "layer 2: a layer with"),
    "a stream of another shape": (["layers.placement=[pre,hyper_connections]"], "must be the same in all layers"),
    "a block with skips": (["layers.block=[sequential,unet]"], "must be the same in all layers"),
    "what another layer computes": (["layers.attention=[mha,cross_layer]"], "layer 1: attention=cross_layer uses what"),
    "positions that cannot share a cache": (
        ["attention=cross_layer", "layers.position=[rope,none]"],
        "layer 1: attention=cross_layer reads the keys that layer 0 caches, so both need one position; got rope in "
        "layer 0 and none in layer 1"),
    "a single position that cannot share a cache": (
        ["layers.attention=[mha*2,cross_layer*2]", "layers.at.position={3: {rope: {base: 500}}}"],
        "layers.at.position: layer 3: attention=cross_layer reads the keys that layer 2 caches"),
    "a layer without rotation that shares a cache": (
        ["attention=cross_layer", "position.skip_every=4"], "queries and keys must be rotated alike"),
    "shared weights": (["model.distinct_layers=2", "layers.attention=[mha*3,mqa]"], "layers 1 and 3 share"),
    "a mask that one lacks": (["architecture=prefix", "objective=prefix_lm", "layers.attention=[mha*3,retention]"],
                              "layer 3: architecture=prefix"),
    "a schedule in one layer": (["layers.attention=[{sliding: {window: 'linear(4,16)'}},mha]"], "values are constant"),
    "a schedule in a single layer": (
        ["layers.at.attention={0: {sliding: {window: 'stages(4@0,16@0.5)'}}}"], "values are constant"),
    "a schedule that no layer follows": (
        ["attention=sliding", "attention.window=linear(4,16)", "layers.attention=[{sliding: {window: 8}},mha]"],
        "attention.window: linear(4,16) reaches no layer"),
    "a schedule on an option without it": (
        ["attention=sliding", "attention.window=linear(4,16)", "layers.attention=[sliding,bigbird]"],
        "layer 1 takes over"),
    "no prefix": (["peft=prefix", "layers.at.attention={1: none}", "task=sft", "source=gsm_symbolic"], "layer 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_layer(case: str) -> None:
    overrides, why = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        compose_run(overrides)
    assert why in str(refused.value)


def test_layers_that_share_a_cache_may_have_the_position_of_their_group() -> None:
    assert layers("attention=cross_layer", "layers.position=[rope*2,none*2]") == {"position": ["rope*2", "none*2"]}
    assert layers("layers.attention=[cross_layer*2,mha*2]", "layers.position=[none*2,rope,alibi]")


def test_a_suggested_command_runs() -> None:
    with pytest.raises(ConfigError) as refused:
        compose_run(["layers.attention=[sliding*9,mha]"])
    assert "This runs: ablatio train 'layers.attention=[sliding*9,mha]' model.n_layers=10" in str(refused.value)


def test_lists_of_other_kinds_stay():
    """preset=gemma3 has lists of attentions and positions: an option replaces that of its own kind."""
    kept = compose_run(["preset=gemma3", "attention=mha"]).config
    assert kept["layers"] == {"position": [{"rope": {"base": 10_000.0}}, "rope"]}
    assert "layers" not in compose_run(["preset=gemma3", "attention=mha", "layers.position=null"]).config
