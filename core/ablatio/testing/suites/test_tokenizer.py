"""Tokenizers: lossless conversion of text to ids and back."""

import json
from typing import Any

import numpy as np
import pytest

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_files, sample_parts

KINDS = ("tokenizer",)
TRAINING = [text * 20 for text in sample_files.TEXTS]


_trained: dict[tuple[str, str], Any] = {}


def _made(part: PartSpec) -> Any:
    """The trained tokenizer, cached for all tests."""
    key = part.name, part.digest
    if key not in _trained:
        _trained[key] = sample_parts.tokenizer(part)
    return _trained[key]


@pytest.mark.parametrize("text", sample_files.TEXTS, ids=range(len(sample_files.TEXTS)))
def test_round_trip(part: PartSpec, text: str) -> None:
    tokenizer = _made(part)
    (ids,) = tokenizer.encode([text])
    back = tokenizer.decode(ids.tolist())
    assert back == text, f"{checks.label(part)}: {text!r} comes back as {back!r}"
    bad = [i for i in ids.tolist() if not 0 <= i < tokenizer.vocab_size]
    assert not bad, f"{checks.label(part)}: ids {bad[:5]} are not in 0 ... {tokenizer.vocab_size - 1}"
    assert tokenizer.eos not in ids.tolist(), (
        f"{checks.label(part)}: eos ({tokenizer.eos}) comes from the text {text!r}"
    )
    size, expected = int(tokenizer.token_bytes()[ids].sum()) if len(ids) else 0, len(text.encode())
    assert size == expected, f"{checks.label(part)}: token_bytes gives {size} for {text!r}, which has {expected} bytes"


def test_many_as_one_by_one(part: PartSpec) -> None:
    tokenizer = _made(part)
    together, alone = tokenizer.encode(sample_files.TEXTS), [tokenizer.encode([t])[0] for t in sample_files.TEXTS]
    for text, a, b in zip(sample_files.TEXTS, together, alone, strict=True):
        array = isinstance(a, np.ndarray) and (a.dtype.kind == "u" or not len(a))
        assert array, f"{checks.label(part)}: encode gives {getattr(a, 'dtype', type(a))}; expected unsigned integers"
        assert np.array_equal(a, b), f"{checks.label(part)}: {text!r} encodes differently among other texts"


def test_sizes_are_known_before_training(part: PartSpec) -> None:
    fresh, tokenizer = sample_parts.made(part), _made(part)
    for name in ("vocab_size", "eos"):
        a, b = getattr(fresh, name), getattr(tokenizer, name)
        assert a == b, f"{checks.label(part)}: {name} is {a} before training and {b} after"
    assert 0 <= fresh.eos < fresh.vocab_size, f"{checks.label(part)}: eos={fresh.eos}, vocab_size={fresh.vocab_size}"
    table = tokenizer.token_bytes()
    shape, expected = table.shape, (tokenizer.vocab_size,)
    assert shape == expected, f"{checks.label(part)}: token_bytes has the shape {shape}; expected {expected}"
    assert table[tokenizer.eos] == 0, f"{checks.label(part)}: eos decodes to {table[tokenizer.eos]} bytes; expected 0"


def test_state_restores(part: PartSpec) -> None:
    tokenizer, fresh = _made(part), sample_parts.made(part)
    state = tokenizer.state()
    json.loads(state)
    fresh.restore(state)
    assert fresh.state() == state, f"{checks.label(part)}: restore(state()) has another state()"
    for a, b in zip(fresh.encode(sample_files.TEXTS), tokenizer.encode(sample_files.TEXTS), strict=True):
        assert np.array_equal(a, b), f"{checks.label(part)}: encodes differently after restore(state())"


def test_training_is_deterministic(part: PartSpec) -> None:
    if not part.facts["trained"]:
        pytest.skip("it is not trained (trained = False)")
    again = sample_parts.made(part)
    again.train(TRAINING)
    assert again.state() == _made(part).state(), f"{checks.label(part)}: equal training gives another state"
