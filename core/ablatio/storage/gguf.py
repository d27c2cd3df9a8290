"""A GGUF file of a LLaMA with GPT-2's byte-level tokenizer, as a folder of transformers."""

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
CONTROL = 3  # GGUF's type of a token that no text encodes to


def convert(path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32) and tokenizer.json.  UserError for any other kind of model."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files are read with gguf\n    try: pip install 'ablatio[tuning]'") from None
    reader = gguf.GGUFReader(path)

    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(name)
        return default if found is None else found.contents()

    if field("general.architecture") != "llama" or field("tokenizer.ggml.model") != "gpt2":
        raise UserError(f"{path.name}: a LLaMA with a byte-level BPE was expected, not {field('general.architecture')}")
    heads, groups = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        weight = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        turned = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2])
        tensors[name] = _by_halves(weight, turned) if turned else weight
    tied = "lm_head.weight" not in tensors
    pieces, _ = tensor_pieces(tensors)
    write_pieces(folder / "model.safetensors", pieces)
    signs = {key: field(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    tokenizer = _tokenizer(
        tokens, kinds, field("tokenizer.ggml.merges"), digits=field("tokenizer.ggml.pre") == "smollm"
    )
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    names = {f"{key}_token": tokens[i] for key, i in signs.items() if i is not None}
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
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 12),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base", 10000.0))},
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": signs["bos"],
        "eos_token_id": signs["eos"],
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)


def _name(theirs: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    if theirs.startswith("blk."):
        _, layer, name, kind = theirs.split(".")
        return f"model.layers.{layer}.{NAMES[name]}.{kind}"
    name, kind = theirs.split(".")
    return f"{NAMES[name]}.{kind}"


def _by_halves(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head from GGUF's pairs (2i, 2i+1) to transformers' (i, i + d/2)."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(tokens: list[str], kinds: list[int], merges: list[str], *, digits: bool) -> hf.Tokenizer:
    """GPT-2's byte-level BPE; digits: each by itself."""
    vocab = {token: i for i, token in enumerate(tokens)}
    model = hf.Tokenizer(hf.models.BPE(vocab, [(a, b) for a, _, b in (m.partition(" ") for m in merges)]))
    by_byte = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    single = [hf.pre_tokenizers.Digits(individual_digits=True)] if digits else []
    model.pre_tokenizer = hf.pre_tokenizers.Sequence([*single, by_byte])
    model.decoder = hf.decoders.ByteLevel()
    model.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    return model
