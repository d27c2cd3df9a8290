"""Texts and small files for the suites; the files are removed at the end of the process."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ablatio.testing import sample_texts
from ablatio.testing.sample_tables import sample_tables

TEXTS = (
    "",
    " ",
    "the quick brown fox, the lazy dog",
    "  two  spaces and a tab\tand a line\r\nand one more\n\n",
    "Größe, naïve, Ελληνικά, кириллица, 日本語, العربية, हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\ufeff\u202e zero width and marks",
    "\x00\x01\x1b[31m controls \x7f",
    "<|endoftext|> <s> </s> <eos> [CLS] [PAD] <unk> look like signs and are text",
    "1234567890 3.14159 -1e-9 0xdeadbeef",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 8,
    "\U0001f600\U0010ffff\ud7ff\ue000",
)


@functools.cache
def sample_files() -> list[Path]:
    """A few documents in the formats that sources read, in folders that are removed at the end of the process."""
    folder = Path(tempfile.mkdtemp(prefix="ablatio-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paragraphs = [f"Document {i}.\n\n{text * 3}" for i, text in enumerate(TEXTS[2:5])]
    text, rows = folder / "sample.txt", folder / "sample.jsonl"
    text.write_text("\n\n\n".join(paragraphs), encoding="utf-8")
    lines = [json.dumps({"text": p, "id": str(i)}, ensure_ascii=False) for i, p in enumerate(paragraphs)]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    chats = folder.with_name(f"{folder.name}-chats") / "chats.jsonl"
    chats.parent.mkdir()
    atexit.register(shutil.rmtree, chats.parent, ignore_errors=True)
    questions = [f"How many are {i} and {i + j}?" for i in range(12) for j in range(2)]
    asked = [{"prompt": q, "completion": f"There are {len(q)} of them."} for q in questions]
    asked.append({"prompt": f"What is it that {'very ' * 40}many are?", "completion": "A long question."})
    chats.write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    judged = folder.with_name(f"{folder.name}-judged") / "judged.jsonl"
    judged.parent.mkdir()
    atexit.register(shutil.rmtree, judged.parent, ignore_errors=True)
    pairs: list[dict[str, Any]] = [{"prompt": q, "chosen": f"{len(q)}.", "rejected": "No idea!"} for q in questions]
    ranked = [{"prompt": f"{q} Really?", "answers": ["Yes.", "Perhaps.", "No, no."]} for q in questions]
    rated = [{"prompt": f"{q} Sure?", "answers": ["Very.", "Hardly."], "elo": [1100, 1000]} for q in questions]
    too_long = {"prompt": f"What is it that {'very ' * 40}many are?", "answers": ["Four.", "Many."], "scores": [2, 1]}
    judgements: list[dict[str, Any]] = [*pairs, *ranked, *rated, too_long]
    judged.write_text("".join(json.dumps(line) + "\n" for line in judgements), encoding="utf-8")
    return [text, rows, folder, chats, judged, *sample_tables(paragraphs)]


@functools.cache
def sample_tokenizer() -> Path:
    """A folder with a byte-level tokenizer.json, as transformers writes it."""
    import tokenizers as hf

    folder = Path(tempfile.mkdtemp(prefix="ablatio-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer, model.decoder = hf.pre_tokenizers.ByteLevel(add_prefix_space=False), hf.decoders.ByteLevel()
    signs = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300, special_tokens=signs, initial_alphabet=letters, show_progress=False
    )
    model.train_from_iterator(TEXTS, trainer)
    model.save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def sample_text() -> Path:
    """A text file with a word that occurs in one of the sample documents, and paragraphs of prose."""
    folder = Path(tempfile.mkdtemp(prefix="ablatio-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "given.txt").write_text("lorem\n\n" + "\n\n".join(map(sample_texts.prose, range(3, 40))))
    return folder / "given.txt"
