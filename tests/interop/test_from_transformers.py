"""transformers folders loaded into ablatio's parts: equal logits, equal text, and a replaced part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ablatio.config.compose import compose_run
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.training.initial_weights import take_over

V, D, L, H = 96, 32, 2, 4
LLAMA = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": L, "num_attention_heads": H,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
GEMMA = LLAMA | {"head_dim": 8, "layer_types": MIXED, "sliding_window": 7, "query_pre_attn_scalar": 10,
                 "pad_token_id": 0, "bos_token_id": 1}  # fmt: skip
TWO_ROPES = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip
GPT2 = {
    "vocab_size": V,
    "n_embd": D,
    "n_layer": L,
    "n_head": H,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NEOX = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 64, "num_hidden_layers": L, "num_attention_heads": H,
    "max_position_embeddings": 64, "rotary_pct": 0.5,
}  # fmt: skip
OPT = {
    "vocab_size": V, "hidden_size": D, "word_embed_proj_dim": D, "ffn_dim": 64, "num_hidden_layers": L,
    "num_attention_heads": H, "max_position_embeddings": 64, "pad_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": V,
    "d_model": D,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": L,
    "num_heads": H,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
FORMS = {
    "llama": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "llama 3": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": None}),
    "mistral, windows": ("Mistral", LLAMA | {"sliding_window": 7}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3, windows": ("Qwen3", LLAMA | {"layer_types": MIXED, "sliding_window": 7, "use_sliding_window": True}),
    "smollm3": ("SmolLM3", LLAMA | {"no_rope_layers": [0, 1], "pad_token_id": 0}),
    "gemma3": ("Gemma3Text", GEMMA),
    "gemma3, local rotation": ("Gemma3Text", GEMMA | {"rope_parameters": TWO_ROPES}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "opt": ("OPT", OPT),
    "bloom": ("Bloom", {"vocab_size": V, "hidden_size": D, "n_layer": L, "n_head": H}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox, one after the other": ("GPTNeoX", NEOX | {"use_parallel_residual": False}),
    "t5": ("T5", T5 | {"decoder_start_token_id": 0}),
    "t5 1.1": (
        "T5",
        T5 | {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration"}


def written(folder: Path, form: str) -> Any:
    """A small random transformers model, saved with save_pretrained, with a tokenizer."""
    from ablatio.testing.sample_files import sample_tokenizer

    name, settings = FORMS[form]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():  # biases and gains that are all zero or one would hide a mistake
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((sample_tokenizer() / "tokenizer.json").read_bytes())
    return model


def ours(folder: Path, *more: str) -> tuple[Any, Any]:
    config = compose_run(["model=hf", f"model.path={folder}", *more]).config
    model = build_model(config, V, 0, 7).eval()
    return model, take_over(model, config["model"])


@pytest.mark.parametrize("form", FORMS)
def test_equal_logits(tmp_path: Path, form: str) -> None:
    """Oracle: the transformers class that wrote the folder."""
    theirs = written(tmp_path, form)
    model, origin = ours(tmp_path)
    assert not origin.anew
    tokens = torch.randint(V, (2, 40), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if form.startswith("t5") else {})
    with torch.no_grad():
        expected, came = theirs(**inputs).logits, model(tokens)
    torch.testing.assert_close(came[..., :V], expected, atol=2e-5, rtol=1e-4)


def test_loaded_model_with_a_replaced_part(tmp_path: Path) -> None:
    """The new part is initialized; all weights that fit are loaded."""
    written(tmp_path, "llama")
    model, origin = ours(tmp_path, "norm=layernorm", "attention=mha")
    assert type(model.model.norm).__name__ == "LayerNorm"
    assert any("k_proj" in name for name in origin.anew) and not any("q_proj" in name for name in origin.anew)
    assert "norm.bias" in " ".join(origin.anew)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "cannot be read"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "refers to code"),
        ({"hidden_act": "laplace9"}, "no equivalent"),
        ({"num_attention_heads": "four"}, "expected int"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    written(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        ours(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="could run code"):
        ours(tmp_path)


def test_no_folder() -> None:
    with pytest.raises(UserError, match="needs a folder"):
        compose_run(["model=hf"])
    with pytest.raises(UserError, match="there is no folder"):
        compose_run(["model=run", "model.path=/nowhere/at/all"])
