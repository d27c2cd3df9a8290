"""Conversion of a GGUF file (LLaMA with GPT-2's byte-level BPE tokenizer) to a transformers model folder."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.storage.atomic_write import write_pieces, write_text
from ablatio.storage.checkpoints import write_json
from ablatio.storage.safetensors_io import tensor_pieces

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # GGUF's type number of special tokens, which no text encodes to


def convert(path: Path, folder: Path) -> None:
    """Convert the GGUF file at `path` to config.json, model.safetensors (float32) and tokenizer.json in `folder`.

    Raises UserError if the model is not a LLaMA with a byte-level BPE tokenizer.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            "the package gguf is needed to read GGUF files\n    try: pip install 'ablatio[tuning]'"
        ) from None
    reader = gguf.GGUFReader(path)

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(name)
        return default if found is None else found.contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.model") != "gpt2":
        came = f"{field('general.architecture')} with tokenizer {field('tokenizer.ggml.model')}"
        raise UserError(f"{path.name} holds {came}; expected a llama model with a gpt2 (byte-level BPE) tokenizer"
                        "\n    try: ablatio fetch smollm2")  # fmt: skip
    heads, groups = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        # A copy: what `dequantize` returns may be a view of the mapped file.
        weight = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        rotated_heads = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2])
        tensors[name] = _by_halves(weight, rotated_heads) if rotated_heads else weight
    tied = "lm_head.weight" not in tensors
    pieces, _ = tensor_pieces(tensors)
    write_pieces(folder / "model.safetensors", pieces)
    special_ids = {key: field(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    # SmolLM2 splits numbers into digits before BPE; its name is the only trace of that in the file.
    tokenizer = _tokenizer(
        tokens, kinds, field("tokenizer.ggml.merges"), digits=field("tokenizer.ggml.pre") == "smollm"
    )
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    names = {f"{key}_token": tokens[i] for key, i in special_ids.items() if i is not None}
    template = {"chat_template": field("tokenizer.chat_template", "")}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names, **template})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": field("llama.context_length"),
        # GGUF stores it in float32: 1e-5 is read as 9.999999747e-06.
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base", 10000.0))},
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": special_ids["bos"],
        "eos_token_id": special_ids["eos"],
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)


def _name(gguf_name: str) -> str:
    """Translate a GGUF tensor name: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    if gguf_name.startswith("blk."):
        _, layer, name, kind = gguf_name.split(".")
        return f"model.layers.{layer}.{NAMES[name]}.{kind}"
    name, kind = gguf_name.split(".")
    return f"{NAMES[name]}.{kind}"


def _by_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from GGUF's RoPE pairs (2i, 2i+1) to transformers' (i, i + d/2)."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(tokens: list[str], kinds: list[int], merges: list[str], *, digits: bool) -> hf.Tokenizer:
    """Build GPT-2's byte-level BPE tokenizer; `digits`: split numbers into single digits first."""
    vocab = {token: i for i, token in enumerate(tokens)}
    model = hf.Tokenizer(hf.models.BPE(vocab, [(a, b) for a, _, b in (m.partition(" ") for m in merges)]))
    by_byte = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    single = [hf.pre_tokenizers.Digits(individual_digits=True)] if digits else []
    model.pre_tokenizer = hf.pre_tokenizers.Sequence([*single, by_byte])
    model.decoder = hf.decoders.ByteLevel()
    # Otherwise "<|im_end|>" in a text would be cut into ordinary pieces.
    model.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    return model
