"""Describe a corpus and its tokenizer: sizes, bytes per token, fertility and speed."""

from collections.abc import Mapping
from typing import Any

from ablatio.data.order import RowPlan
from ablatio.data.shards import SPLITS
from ablatio.data.tokenizer_measures import tokenizer_measures
from ablatio.training.frozen_model import open_model
from ablatio.training.task_context import TaskContext


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokenize the corpus of a config, or open it in the cache, and describe it.

    The numbers of `tokenizer_measures`, the counts of both splits, notes of the source, and the folder of the files.
    """
    setup = TaskContext(config, RowPlan(1), open_model=open_model)
    corpus, tokenizer = setup.corpus(setup.source())
    about = {"tokenizer": config["tokenizer"]["name"], "vocab_size": int(tokenizer.vocab_size)}
    measures = tokenizer_measures([corpus.counts[split] for split in SPLITS], corpus.encoding_seconds)
    return about | corpus.counts | measures | {"folder": str(corpus.folder)}
