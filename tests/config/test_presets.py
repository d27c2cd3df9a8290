"""Presets compose at each size, the command line overrides them, and invalid combinations are refused."""

from types import SimpleNamespace

import pytest
import yaml
from helpers.runs import TINY, ablatio, summary

from ablatio.cli.completion import candidates
from ablatio.config import presets, yaml_files
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, DamagedFile
from ablatio.registry import discovery
from ablatio.registry.registry import ContractError, Distribution

NAMES = sorted(p.stem for p in (yaml_files.shipped("conf") / "preset").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_preset_composes_at_a_trainable_size_and_at_each_published_size(name):
    preset = presets.presets()[name]
    small = compose_run([f"preset={name}"]).config
    assert small["model"]["d_model"] == 128 and small["model"]["vocab_size"] is None
    for kind, option in preset.parts.items():
        assert (small[kind]["name"] if isinstance(option, str) else list(small[kind])) == option
    for size, settings in preset.sizes.items():
        config = compose_run([f"preset={name}", f"size={size}"]).config
        for section, values in settings.items():
            found = config[section]
            assert found == values if not isinstance(values, dict) else {k: found[k] for k in values} == values


@pytest.mark.matrix
@pytest.mark.parametrize("name", NAMES)
def test_learns(name, tmp_path, text_file):
    """A preset trains with its own optimizer and schedule, at a size that takes a second."""
    own = ("train.steps", "train.val_every", "train.checkpoint_every", "model.n_layers")
    tiny = [o for o in TINY if not o.startswith(own)] + ["model.n_layers=2"]
    settings = [*tiny, f"preset={name}", "train.steps=60", "train.val_every=null", "train.checkpoint_every=null"]
    ended = ablatio(["train", *settings, f"source.path={text_file}", f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert ended.code == 0, ended.err
    found = summary(tmp_path / "run")
    assert found["after"]["loss"] < 0.93 * found["before"]["loss"]


def test_the_command_line_takes_precedence():
    config = compose_run(["preset=bloom", "size=176b", "model.n_layers=2", "norm.eps=1e-3", "model.bias=false"]).config
    assert config["model"]["n_layers"] == 2 and config["model"]["d_model"] == 14336 and not config["model"]["bias"]
    assert config["norm"]["name"] == "layernorm" and config["norm"]["eps"] == 1e-3


def test_settings_of_a_part_are_dropped_with_the_part():
    assert compose_run(["preset=llama2", "norm=layernorm"]).config["norm"]["eps"] == 1e-5  # layernorm's own default
    swept = compose_run(["preset=gpt2", "norm=layernorm", "optimizer=sgd", "activation=relu"]).config
    assert swept["optimizer"] == {"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    # The same part, named again, is the preset's: in a sweep over norms one arm is the published model.
    again = compose_run(["preset=llama2", "norm=rmsnorm", "optimizer=adamw"]).config
    assert again == compose_run(["preset=llama2"]).config


def test_generic_sizes_fit_each_preset():
    assert compose_run(["preset=llama", "size=tiny"]).config["model"]["d_model"] == 64


@pytest.mark.parametrize(
    ("overrides", "what", "fix"),
    [
        (["size=176b"], "is a size of preset=bloom, and no preset is chosen", "preset=bloom"),
        (["preset=gpt2", "size=176b"], "it has 124m, 355m, 774m, 1.5b", "size=124m"),
        (["preset=blom"], "did you mean bloom", "preset=bloom"),
        (["preset=bloom", "model.vocab_size=100"], "tokenizer=bpe has 2048", "model.vocab_size=2048"),
        (["preset=bloom", "preset=gpt2"], "a model has one preset", "preset=gpt2"),
    ],
)
def test_invalid_choices_are_refused_with_a_command_that_works(overrides, what, fix):
    with pytest.raises(ConfigError) as caught:
        compose_run(overrides)
    assert what in str(caught.value) and f"try: {fix}" in str(caught.value)
    assert "This runs: ablatio train" in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_size_without_its_preset_leaves_no_default_behind():
    from ablatio.config.compose import _hydra_compose
    from ablatio.config.schema import check

    node = _hydra_compose(["size=176b"])  # as an experiment file may choose it, unseen by the check of the command line
    model = dict(node.model)
    assert {p.where for p in check({"model": model})} >= {"model.d_model", "model.n_layers", "model.n_heads"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("norm: rmsnorm\nlearning_rate: 3\n", "`learning_rate` is not a setting of a preset"),
        ("norm: {_target_: os.system}\n", "would build an object"),
        ("- norm\n", "holds list; expected settings"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, why):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((ContractError, DamagedFile), match=why) as caught:
        presets.load(yaml_files.File("preset", "mine", path, yaml_files.Distribution("x", "1")))
    assert str(path) in str(caught.value)


def test_every_preset_says_what_it_is_and_where_it_comes_from():
    for name, file in yaml_files.options_of("preset").items():
        assert len(file.summary) > 20 and presets.load(file).paper, name
        assert next(iter(yaml.safe_load(file.path.read_text()))) == "paper"


def test_completion_knows_presets_and_their_sizes():
    assert "preset=bloom" in candidates(["train", "preset=bl"])
    assert "size=176b" in candidates(["train", "preset=bloom", "size=1"])
    assert "size=176b" not in candidates(["train", "preset=gpt2", "size=1"])
    assert "preset=bloom" in candidates(["show", "preset=b"])


@pytest.fixture
def plugin_conf(tmp_path, monkeypatch):
    """Conf folder of a plugin, with a preset, a size and an experiment."""
    conf = tmp_path / "conf"
    for group in ("preset", "experiment"):
        (conf / group).mkdir(parents=True)
    source = SimpleNamespace(conf=conf, distribution=Distribution("my-plugin", "1.0"))
    known = discovery.sources()
    monkeypatch.setattr(discovery, "sources", lambda: [*known, source])
    return conf


def test_a_plugin_brings_presets_and_sizes(plugin_conf):
    sizes = "sizes:\n  5m: {model: {d_model: 96, n_layers: 3, n_heads: 3}}\n"
    text = "# Mine.\npaper: doi:1\nnorm: {name: layernorm, eps: 1.0e-3}\n" + sizes
    (plugin_conf / "preset" / "mine.yaml").write_text(text)
    config = compose_run(["preset=mine", "size=5m"]).config
    assert config["norm"]["eps"] == 1e-3 and config["model"]["d_model"] == 96
    assert str(yaml_files.options_of("preset")["mine"].distribution) == "my-plugin 1.0"
    with pytest.raises(ConfigError, match="preset=bloom was not published at 5m"):
        compose_run(["preset=bloom", "size=5m"])


def test_an_experiment_starts_from_a_preset(plugin_conf):
    chosen = "defaults:\n  - override /preset: bloom\n  - override /position: rope\n"
    text = f"# @package _global_\n{chosen}\nmodel: {{bias: false}}\n"
    (plugin_conf / "experiment" / "ours.yaml").write_text(text)
    config = compose_run(["experiment=ours"]).config
    assert config["position"]["name"] == "rope" and config["activation"] == {"name": "gelu", "approximate": "tanh"}
    assert config["model"]["embedding_norm"] and not config["model"]["bias"]
    assert compose_run(["experiment=ours", "position=alibi"]).config["position"]["name"] == "alibi"


def test_batches_grow_as_published():
    """GPT-3 from 32 thousand to 3.2 million tokens, PaLM from 1 to 2 and 4 million; constant at sizes of ours."""
    gpt3, palm = (compose_run([f"preset={name}", f"size={size}"]).config for name, size in GROWING)
    rows = gpt3["train"]["batch_size"]
    assert [rows.at(0, 100_000, 0), rows.at(50_000, 100_000, int(12e9))] == [16, 1600]
    assert 16 * 2048 == 32_768 and 1600 * 2048 == 3_276_800 == 100 * 32_768
    assert [palm["train"]["batch_size"].at(step, 255_000) for step in (0, 50_000, 115_000)] == [512, 1024, 2048]
    assert palm["optimizer"]["name"] == "adafactor" and not palm["optimizer"]["factored"]
    assert isinstance(compose_run(["preset=gpt3"]).config["train"]["batch_size"], int)


GROWING = (("gpt3", "175b"), ("palm", "540b"))
