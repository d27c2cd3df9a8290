"""A small LLaMA saved by transformers, with ChatML's special tokens in its tokenizer; stands in for SmolLM2."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END, CHATML_TOKENS = "</s>", ("<|im_start|>", "<|im_end|>")


def small_llama(folder: Path) -> Path:
    """Write the model with a byte-level tokenizer; texts end with `</s>`, answers with `<|im_end|>`."""
    import transformers

    tokens = [END, *CHATML_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=len(tokens), tie_word_embeddings=True)
    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([END, *CHATML_TOKENS])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": CHATML_TOKENS[1]}))
    return folder
