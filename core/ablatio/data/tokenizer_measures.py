"""How well a tokenizer fits a text, from the counts of a corpus."""

from collections.abc import Mapping, Sequence

SECONDS = "encoding_seconds"  # key of the CPU seconds of tokenizing, beside the counts of a corpus


def tokenizer_measures(splits: Sequence[Mapping[str, int]], seconds: float | None) -> dict[str, float | None]:
    """Measures over all splits, each with its `documents`, `tokens`, `bytes` and, where they were counted, `words`.

    seconds  CPU seconds of tokenizing these splits; None: not known

    bytes_per_token  UTF-8 bytes of the text per token, without the token that opens each document
    fertility        tokens per word, words being separated by white space (Rust et al. 2020, arXiv:2012.15613)
    speed            MB of text per CPU second of encoding, on one core, when the cache was built

    A value is None if a count that it needs is missing or 0.
    """
    size = sum(held["bytes"] for held in splits)
    tokens = sum(held["tokens"] - held["documents"] for held in splits)
    words = sum(held.get("words", 0) for held in splits)
    return {
        "bytes_per_token": size / tokens if tokens else None,
        "fertility": tokens / words if words else None,
        "speed": size / seconds / 1e6 if seconds else None,
    }
