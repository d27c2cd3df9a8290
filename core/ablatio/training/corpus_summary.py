"""Describe a corpus and its tokenizer: sizes, bytes per token, fertility and speed."""

from collections.abc import Mapping
from typing import Any

from ablatio.data.corpus import Corpus
from ablatio.data.order import RowPlan
from ablatio.training.task_context import TaskContext
from ablatio.training.text_writer import open_writer


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenize the corpus of a config, or open it in the cache, and describe it.

    The numbers of `tokenizer_measures`, the counts of both splits, notes of the source, and the folder of the files.
    """
    setup = TaskContext(config, RowPlan(1), open_writer=open_writer)
    corpus, tokenizer = setup.corpus(setup.source())
    about = {"tokenizer": config["tokenizer"]["name"], "vocab_size": int(tokenizer.vocab_size)}
    return about | corpus.counts | tokenizer_measures(corpus) | {"folder": str(corpus.folder)}


def tokenizer_measures(corpus: Corpus) -> dict[str, float | None]:
    """How well a tokenizer fits a corpus, over both splits; None for what the cache entry does not say.

    bytes_per_token  UTF-8 bytes of the text per token, without the token that opens each document
    fertility        tokens per word, words being separated by white space (Rust et al. 2020, arXiv:2012.15613)
    speed            MB of text per CPU second of encoding, on one core, when the cache was built
    """
    both = [corpus.counts[split] for split in ("train", "validation")]
    size = sum(held["bytes"] for held in both)
    tokens = sum(held["tokens"] - held["documents"] for held in both)
    words, seconds = sum(held.get("words", 0) for held in both), corpus.encoding_seconds
    return {
        "bytes_per_token": size / tokens if tokens else None,
        "fertility": tokens / words if words else None,
        "speed": size / seconds / 1e6 if seconds else None,
    }
