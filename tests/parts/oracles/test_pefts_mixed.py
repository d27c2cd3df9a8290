"""LoraHub against its formula, and methods of peft=hf against the library peft itself."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import yaml
from helpers.support import model_config
from torch import nn

from ablatio import pefts
from ablatio.config.compose import compose_run
from ablatio.errors import EnvironmentFault, UserError
from ablatio.model.build import build_model
from ablatio.model.peft.adapter_files import save_adapter
from ablatio.model.peft.merge import merge
from ablatio.testing import tiny_models
from ablatio_std.pefts.hf import ELSEWHERE, PROMPTS


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def kept_loras(folder: Path) -> list[Any]:
    """Three LoRAs of the base, saved in folders, and the models with them."""
    nets = []
    for i in range(3):
        net, knobs = base(), {"targets": ("linear",), "rank": 2, "alpha": 6.0}
        pefts.build("lora", knobs).apply(net, i)
        for p in net.parameters():
            if p.requires_grad:
                p.data.normal_(generator=torch.Generator().manual_seed(i))
        save_adapter(folder / str(i), net, {"name": "lora", **pefts["lora"].defaults, **knobs})
        nets.append(net)
    return nets


@pytest.mark.oracle("peft=lorahub", "its formula on the LoRAs that were saved")
def test_lorahub_is_the_weighted_sum_of_trained_loras(tmp_path: Path) -> None:
    loras, net = kept_loras(tmp_path), base()
    part = pefts.build("lorahub", {"adapters": [str(tmp_path / str(i)) for i in range(3)]})
    part.apply(net, 0)
    mixture = torch.tensor([0.5, -1.0, 2.0])
    net[0].adapter.weights.data = mixture
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 3
    x = torch.randn(4, 8)
    y = x
    for i in range(2):
        a, b = (sum(w * getattr(n[i].adapter, f"lora_{x}") for w, n in zip(mixture, loras, strict=True)) for x in "AB")
        y = y @ (net[i].weight + 3.0 * b @ a).T + net[i].bias
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-4)


def test_lorahub_finds_the_mixture_without_gradients(tmp_path: Path) -> None:
    kept_loras(tmp_path)
    net = base()
    part = pefts.build("lorahub", {"adapters": [str(tmp_path / str(i)) for i in range(3)], "l1": 0.0})
    part.apply(net, 0)
    weights, goal = net[0].adapter.weights, torch.tensor([0.6, -0.3, 1.0])
    for index in range(200):
        loss = (weights.detach() - goal).square().sum()
        part.before_step(SimpleNamespace(model=net, loss=loss, index=index))
    assert (net[1].adapter.best - goal).abs().max() < 0.05


def test_lorahub_refuses_what_it_cannot_mix(tmp_path: Path) -> None:
    kept_loras(tmp_path)
    with pytest.raises(UserError, match="names none"):
        pefts.build("lorahub").apply(base(), 0)
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(UserError, match="another base model"):
        pefts.build("lorahub", {"adapters": [str(tmp_path / "0")]}).apply(other, 0)


# Methods of peft for layers, with settings for layers of 32 to 32 where peft's defaults do not fit.
SETTINGS = {
    "c3a": ["block_size=8"], "miss": ["r=4"], "shira": ["r=4"], "road": ["group_size=8"],
    "vblora": ["vector_length=8", "num_vectors=16"], "waveft": ["n_frequency=64"],
}  # fmt: skip
BESIDE_LAYERS = (
    "adamss beft boft c3a deft delora fourierft frod glora gralora hira hra ia3 ln_tuning loha lokr lora miss oft osf "
    "peanut poly psoft pvera randlora road shira supertuning tinylora unilora vblora vera waveft"
)
METHODS = {method: SETTINGS.get(method, []) for method in BESIDE_LAYERS.split()}


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))


def test_every_peft_method_is_supported_or_refused() -> None:
    """Each method of the installed peft works in a model, or is refused with the name of an alternative."""
    assert {kind.value.lower() for kind in peft.PEFT_TYPE_TO_TUNER_MAPPING} == {*METHODS, *PROMPTS, *ELSEWHERE}


@pytest.mark.oracle("peft=hf", "peft, put into the model by itself")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of frod
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_peft(method: str) -> None:
    net, theirs = wide(), wide()
    part = pefts.build("hf", {"method": method, "targets": ("linear",), "settings": METHODS[method]})
    part.apply(net, 0)
    given: dict[str, Any] = {k: int(v) for k, v in (s.split("=") for s in METHODS[method])}
    given |= {"feedforward_modules": []} if method == "ia3" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](target_modules=["0", "1"], **given)
        tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING[method.upper()](theirs, config, "default")
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trains == {n for n, p in theirs.named_parameters() if p.requires_grad} and trains
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.01 * torch.randn_like(p)
    theirs.load_state_dict(net.state_dict())
    x = torch.randn(3, 1, 32)
    one_task = {"task_ids": torch.zeros(3, dtype=torch.long)} if method == "poly" else {}
    net.eval(), theirs.eval()
    torch.testing.assert_close(net(x), tuner(x, **one_task))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("method", METHODS)
def test_outputs_depend_neither_on_later_tokens_nor_on_other_texts(method: str) -> None:
    """Merging, where peft supports it, keeps the outputs, and unmerging restores the weights bit for bit."""
    net, rows = tiny_models.model(), tiny_models.tokens(2)
    part = pefts.build("hf", {"method": method, "settings": METHODS[method]})
    part.apply(net, 0)
    tiny_models.tune(net, part, 2, lr=1e-2)
    later = torch.cat([rows[:, :12], tiny_models.tokens(2, seed=9)[:, 12:]], dim=1)
    with torch.no_grad():
        plain = net.eval()(rows)
        torch.testing.assert_close(net(later)[:, :12], plain[:, :12], rtol=0, atol=1e-6)
        torch.testing.assert_close(net(rows[1:]), plain[1:], rtol=0, atol=1e-6)
        try:
            merged = merge(net)
        except UserError as error:
            assert method in ("beft", "poly") and "cannot be merged" in str(error)
            assert torch.equal(net(rows), plain)
            return
        torch.testing.assert_close(net(rows), plain, rtol=1e-5, atol=1e-5)
        assert not any("base_layer" in m._modules for m in net.modules())
        merged.restore()
        assert torch.equal(net(rows), plain)


SIZES = {"prefix_tuning": ["num_virtual_tokens=5", "prefix_projection=true"], "cartridge": ["num_virtual_tokens=5"]}


@pytest.mark.oracle("peft=hf", "PeftModel around transformers' Llama with the same weights")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("method", PROMPTS)
def test_virtual_tokens_of_peft(method: str) -> None:
    import transformers

    attention = {"name": "gqa", "n_kv_heads": 2}
    net = build_model(model_config(attention=attention, position={"name": "rope", "layout": "half"}), 50)
    held = {name: t.clone() for name, t in net.state_dict().items()}
    settings = SIZES.get(method, ["num_virtual_tokens=5"])
    pefts.build("hf", {"method": method, "settings": settings}).apply(net, 0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=held["model.layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rms_norm_eps=net.model.norm.eps, tie_word_embeddings=True, attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(held)
    given = {key: yaml.safe_load(value) for key, value in (s.split("=") for s in settings)}
    theirs = peft.get_peft_model(
        llama, peft.PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](task_type="CAUSAL_LM", **given)
    ).eval()
    theirs.prompt_encoder["default"].load_state_dict(net.model.virtual.encoder.state_dict())
    rows = torch.randint(1, 50, (2, 9))
    one_task = {"task_ids": torch.zeros(2, dtype=torch.long)} if method.startswith("multitask") else {}
    with torch.no_grad():
        wanted = theirs(input_ids=rows, attention_mask=torch.ones_like(rows), **one_task).logits[:, -9:]
        torch.testing.assert_close(net.eval()(rows), wanted, rtol=1e-4, atol=1e-4)


def test_unknown_methods_and_settings_are_refused() -> None:
    knobs: dict[str, Any]
    for knobs, said in (
        ({"method": "vblorra"}, "did you mean vblora"),
        ({"method": "xlora"}, "try: peft=lorahub"),
        ({"settings": ("rang=4",)}, "key=value"),
        ({"settings": ("r=0",)}, "peft"),
        ({"method": "miss", "settings": ("r=64",)}, "its scalar settings, for peft.settings: r=64"),
    ):
        with pytest.raises(UserError, match=said):
            pefts.build("hf", {"targets": ("linear",), **knobs}).apply(base(), 0)


def test_settings_on_the_command_line() -> None:
    config = compose_run(["peft=hf", "peft.method=vblora", "peft.settings=['num_vectors=4','vector_length=4']"]).config
    assert config["peft"]["settings"] == ["num_vectors=4", "vector_length=4"]


KEPT: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {}, "qlora": {"dropout": 0.0}, "adalora": {}, "dylora": {"used_rank": 3}, "vera": {"rank": 8},
    "loha": {}, "lokr": {"rank": 2}, "oft": {}, "boft": {}, "hra": {}, "ia3": {}, "lntuning": {}, "llama_adapter": {},
    "prompt": {"tokens": 5}, "p_tuning": {"tokens": 5}, "prefix": {"tokens": 5}, "p_tuning_v2": {"tokens": 5},
    "fourierft": {"n_frequency": 40},
    "glora": {}, "hf": {"method": "randlora"},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", KEPT)
def test_the_library_peft_loads_exported_adapters(tmp_path: Path, name: str, layout: str) -> None:
    """The exported adapter on transformers' Llama with the base's weights gives the tuned model's outputs.

    If Llama orders the rows of q_proj differently and the method cannot follow, nothing is written.
    """
    import transformers

    from ablatio.interop.families import family_of
    from ablatio.interop.peft_export import export_adapter
    from ablatio.model.peft.merge import bare_base
    from ablatio.model.quantized import dequantize

    config = model_config(position={"name": "rope", "layout": layout}, activation="swiglu", bias=name == "glora")
    net, part = build_model(config, 50), pefts.build(name, KEPT[name])
    family = family_of(config, 50, 0)
    assert family is not None and family.model_type == "llama"
    if hasattr(part, "prepare"):
        part.prepare(net)
    part.apply(net, 0)
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    rows = torch.randint(1, 50, (2, 9))
    with torch.no_grad():
        wanted = net.eval()(rows)
    why_not = export_adapter(tmp_path / "adapter", net, part, family)
    moved = layout == "interleaved" and name in (
        "vera",
        "lokr",
        "fourierft",
        "hf",
        "llama_adapter",
        "prefix",
        "p_tuning_v2",
    )
    assert ("differently" in why_not) == moved and bool(why_not) == moved, why_not
    if moved:
        assert not (tmp_path / "adapter").exists()
        return
    dequantize(net)
    bare_base(net)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**family.config_json()))
    llama.load_state_dict(family.to_native(net.state_dict()), strict=False)
    llama.tie_weights()
    theirs = peft.PeftModel.from_pretrained(llama.eval(), tmp_path / "adapter").eval()
    with torch.no_grad():
        found = theirs(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[:, -9:]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_missing_library_of_a_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    with pytest.raises(EnvironmentFault, match=r"scikit-learn is required.*\n.*try: pip install scikit-learn"):
        pefts.build("hf", {"method": "adamss", "targets": ("linear",)}).apply(base(), 0)
