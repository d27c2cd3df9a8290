"""Each setting and each tensor of a transformers folder is read, known to be harmless, or refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ablatio.config import from_transformers, transformers_keys
from ablatio.config.compose import compose_run
from ablatio.errors import UserError
from ablatio.interop import compare
from ablatio.interop.families import family_of
from ablatio.model.build import build_model
from ablatio.training.initial_weights import take_over

V, D = 96, 32
LLAMA = {"vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None}  # fmt: skip
GPT2 = {"vocab_size": V, "n_embd": D, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
        "eos_token_id": 0}  # fmt: skip
OPT = {"vocab_size": V, "hidden_size": D, "word_embed_proj_dim": D, "ffn_dim": 64, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
NEOX = {"vocab_size": V, "hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64}  # fmt: skip
BLOOM = {"vocab_size": V, "hidden_size": D, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": V, "d_model": D, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
      "decoder_start_token_id": 0}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
CLASSES = {"GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration"}

# (class, settings): read, with equal logits
READ = {
    "gpt2 without attention scale": ("GPT2", GPT2 | {"scale_attn_weights": False}),
    "gpt2 reordered": ("GPT2", GPT2 | {"reorder_and_upcast_attn": True}),
    "gpt2 untied, another width": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40}),
    "opt without final norm": ("OPT", OPT | {"_remove_final_layer_norm": True}),
    "opt without biases": ("OPT", OPT | {"enable_bias": False}),
    "llama yarn": ("Llama", LLAMA | {"rope_parameters": YARN}),
    "llama yarn without rounding": ("Llama", LLAMA | {"rope_parameters": YARN | {"truncate": False}}),
    "llama yarn mscale": ("Llama", LLAMA | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "llama biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama one head width": ("Llama", LLAMA | {"head_dim": 16, "pretraining_tp": 2}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8}),
    "neox without attention biases": ("GPTNeoX", NEOX | {"attention_bias": False}),
    "t5": ("T5", T5),
}
# (class, settings, setting that the refusal names)
REFUSED = {
    "gpt2 by layer": ("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "crfm": (
        "GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    "gpt2 cross": ("GPT2", GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    "opt norms": ("OPT", OPT | {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
    "bloom residual": ("Bloom", BLOOM | {"apply_residual_connection_post_layernorm": True}, "post_layernorm"),
    "llama partial": (
        "Llama", LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "qwen3 biases": ("Qwen3", LLAMA | {"attention_bias": True, "head_dim": 8}, "attention_bias"),
    "qwen3 eps": ("Qwen3", LLAMA | {"rms_norm_eps": 1e-2, "head_dim": 8}, "rms_norm_eps"),
    "qwen2 layers": (
        "Qwen2", LLAMA | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8,
                          "use_sliding_window": True},
        "sliding",
    ),
    "llama one bias": ("Llama", LLAMA | {"attention_bias": True}, "attention_bias"),
    "smollm3 one bias": ("SmolLM3", LLAMA | {"attention_bias": True, "pad_token_id": 0}, "attention_bias"),
}  # fmt: skip


def written(folder: Path, name: str, settings: dict[str, Any]) -> Any:
    """A model of transformers with random weights in `folder`."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path) -> tuple[Any, Any]:
    config = compose_run(["model=hf", f"model.path={folder}", "tokenizer=bytes"]).config
    model = build_model(config, V, 0).eval()
    return model, take_over(model, config["model"])


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("form", READ)
def test_settings_that_are_read(tmp_path: Path, form: str) -> None:
    """Oracle: the class of transformers, in float64."""
    name, settings = READ[form]
    theirs = written(tmp_path, name, settings)
    model, _ = loaded(tmp_path)
    tokens = torch.randint(1, V, (2, 40), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if name == "T5" else {})
    with torch.no_grad():
        expected, came = theirs.double()(**inputs).logits, model.double()(tokens)[..., :V]
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "setting", "read"),
    [
        ("Mistral", {"attention_bias": True}, False), ("Mistral", {"attention_bias": False}, True),
        ("Qwen2", {"attention_bias": False}, False), ("Qwen2", {"attention_bias": True}, True),
        ("Mistral", {"mlp_bias": True}, False), ("Qwen2", {"mlp_bias": True}, False),
        ("Qwen3", {"mlp_bias": True, "head_dim": 8}, False), ("Qwen2", {"mlp_bias": False}, True),
    ],
)  # fmt: skip
def test_biases_that_the_family_does_not_have(tmp_path: Path, name: str, setting: dict[str, Any], read: bool) -> None:
    """transformers ignores the setting; a config that says otherwise is of another model than its tensors."""
    default_config(tmp_path, name)
    change(tmp_path, **({"rms_norm_eps": 1e-6} | setting))
    if read:
        assert from_transformers.read(tmp_path)["model"]["bias"] is False
        return
    with pytest.raises(UserError, match=rf"{next(iter(setting))}=(?s:.*)\n    try: "):
        from_transformers.read(tmp_path)


@pytest.mark.parametrize("form", REFUSED)
def test_settings_that_are_refused(tmp_path: Path, form: str) -> None:
    name, settings, said = REFUSED[form]
    written(tmp_path, name, settings)
    with pytest.raises(UserError, match=said):
        loaded(tmp_path)


FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma3Text", "GPT2", "OPT", "Bloom", "GPTNeoX", "T5")


@pytest.mark.parametrize("name", FAMILIES)
def test_each_key_of_a_config_class_is_known(tmp_path: Path, name: str) -> None:
    """A default config of each class, with all of its keys, is read; and so is one that save_pretrained wrote."""
    default_config(tmp_path, name)
    assert from_transformers.read(tmp_path)["model"]["n_layers"] > 0


def default_config(folder: Path, name: str) -> None:
    small = {"Mistral": {"sliding_window": None}}.get(name, {})
    config = getattr(transformers, f"{name}Config")(**small)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_refuses_a_setting_that_it_does_not_read(tmp_path: Path, name: str) -> None:
    default_config(tmp_path, name)
    change(tmp_path, residual_multiplier=2)
    with pytest.raises(UserError, match="`residual_multiplier` = 2 is not known"):
        from_transformers.read(tmp_path)


def test_the_families_above_are_all_that_can_be_read() -> None:
    kinds = {getattr(transformers, f"{name}Config").model_type for name in FAMILIES}
    assert kinds == from_transformers.READERS.keys()


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "residual_multiplier", "no_rope_layers", "moe"])
def test_an_unknown_setting_is_refused_by_name(tmp_path: Path, key: str) -> None:
    written(tmp_path, "Llama", LLAMA)
    change(tmp_path, **{key: 2})
    with pytest.raises(UserError, match=rf"`{key}` = 2 is not known(.|\n)*delete `{key}`"):
        loaded(tmp_path)
    change(tmp_path, **{key: None})
    loaded(tmp_path)


@pytest.mark.parametrize("key", transformers_keys.ONE_VALUE)
def test_a_setting_with_one_value_is_refused_at_any_other(tmp_path: Path, key: str) -> None:
    written(tmp_path, "GPT2", GPT2)
    change(tmp_path, **{key: transformers_keys.ONE_VALUE[key]})
    loaded(tmp_path)
    change(tmp_path, **{key: {"other": 1}})
    with pytest.raises(UserError, match=key):
        loaded(tmp_path)


def test_lists_of_keys_do_not_overlap() -> None:
    assert not transformers_keys.HARMLESS & transformers_keys.ONE_VALUE.keys()


@pytest.mark.parametrize("value", ["x", [], {"a": 1}, True, 1.5, None, -3])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_attention_heads", "rms_norm_eps", "rope_parameters", "layer_types"]
)
def test_values_of_another_type_are_refused_without_a_traceback(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "llama", "rope_theta": 1e4, key: value}))
    try:
        compose_run(["model=hf", f"model.path={tmp_path}", "tokenizer=bytes"])
    except UserError as error:
        assert str(error)


def tensors(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors"
    held = load_file(path)
    edit(held)
    save_file(held, path, {"format": "pt"})


def test_each_tensor_is_used_or_named(tmp_path: Path) -> None:
    written(tmp_path, "Llama", LLAMA)
    constant = torch.ones(4)
    tensors(tmp_path, lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": constant}))
    assert not loaded(tmp_path)[1].anew  # older versions of transformers stored these frequencies
    tensors(tmp_path, lambda held: held.update({"model.layers.0.self_attn.gate.weight": torch.ones(3, 3)}))
    with pytest.raises(UserError, match=r"self_attn\.gate\.weight has no counterpart"):
        loaded(tmp_path)


def test_tensors_without_a_place_are_refused_or_named(tmp_path: Path) -> None:
    """A bias that the parts do not have; with a replaced part the run says which weights have no place."""
    written(tmp_path, "Qwen2", LLAMA)
    tensors(tmp_path, lambda held: held.update({"model.layers.1.mlp.up_proj.bias": torch.ones(48)}))
    with pytest.raises(UserError, match=r"no place: model\.layers\.1\.mlp\.up_proj\.bias"):
        loaded(tmp_path)
    tensors(tmp_path, lambda held: held.pop("model.layers.1.mlp.up_proj.bias"))
    config = compose_run(["model=hf", f"model.path={tmp_path}", "tokenizer=bytes", "attention.qkv_bias=false"]).config
    origin = take_over(build_model(config, V), config["model"])
    assert origin is not None
    assert "without a place here: model.layers.0.self_attn.q_proj.bias" in str(origin) and len(origin.unused) == 6


def test_logits_are_compared_with_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of reading that no rule knows: here, another epsilon than the folder's."""
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    written(folder, "Llama", LLAMA)
    made = build_model

    def wrong(factor: float) -> Any:
        def build(config: Any, *more: Any) -> Any:
            return made({**config, "norm": {**config["norm"], "eps": config["norm"]["eps"] + factor}}, *more)

        return build

    monkeypatch.setattr(compare, "build_model", wrong(0.3))
    with pytest.raises(UserError, match="its logits differ from those of transformers by 0"):
        loaded(folder)
    monkeypatch.setattr(compare, "build_model", wrong(3e-6))
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        loaded(folder)
    assert "its logits differ from those of transformers by" in caplog.text
    monkeypatch.setattr(compare, "build_model", made)
    caplog.clear()
    loaded(folder)
    monkeypatch.setattr(compare, "difference", lambda *_: pytest.fail("compared again"))
    loaded(folder)  # remembered under the folder's content
    assert not caplog.text


def test_qwen3_is_not_exported_with_an_epsilon_that_its_head_norms_lack() -> None:
    parts = ["size=tiny", "attention.qk_norm=rmsnorm", "position=rope", "activation=swiglu", "model.tied=false"]
    found = {eps: family_of(compose_run([*parts, f"norm.eps={eps}"]).config, 257) for eps in ("1e-6", "1e-5")}
    assert found["1e-5"] is None and found["1e-6"] is not None and found["1e-6"].model_type == "qwen3"


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    written(folder, "Llama", LLAMA)
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare, "difference", lambda *_: float("nan"))
    for _ in range(2):  # nor remembered as equal
        with pytest.raises(UserError, match="its logits differ from those of transformers by nan"):
            loaded(folder)


SCALED = {
    "llama": ["activation=swiglu"],
    "qwen2": ["activation=swiglu", "attention.qkv_bias=true"],
    "qwen3": ["activation=swiglu", "attention.qk_norm=rmsnorm", "norm.eps=1e-6"],
    "mistral": ["activation=swiglu", "attention=sliding", "attention.window=8"],
    "smollm3": ["activation=swiglu", "layers.position=[rope,none]"],
    "gpt2": ["preset=gpt2"],
    "opt": ["preset=opt"],
    "bloom": ["preset=bloom"],
    "gpt_neox": ["preset=gpt2", "position=rope", "position.fraction=0.5"],
}


@pytest.mark.parametrize("kind", SCALED)
@torch.no_grad()
def test_an_export_keeps_the_factors_on_scores_and_logits(kind: str) -> None:
    sizes = ["model.d_model=32", "model.n_layers=2", "model.n_heads=4", "model.max_len=32"]
    factors = ["model.attention_scale=0.7", "model.logit_scale=0.5"]
    config = compose_run([*SCALED[kind], *sizes, *factors, "model.dropout=0"]).config
    family = family_of(config, V)
    assert family is not None and family.model_type == kind
    ours, settings = build_model(config, V).eval(), family.config_json()
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(settings.pop("model_type"), **settings), attn_implementation="eager"
    ).eval()
    missing, unknown = theirs.load_state_dict(family.to_native(ours.state_dict()), strict=False)
    assert not unknown and {*missing} <= {"lm_head.weight"}
    tokens = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    back = family.from_native(family.to_native(ours.state_dict()))
    assert all(torch.allclose(back[name], value) for name, value in ours.state_dict().items() if name in back)
