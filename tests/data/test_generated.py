"""Generated sources: what their texts say is true, held-out texts are disjoint, and what is asked can be learned."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import ablatio

from ablatio import sources
from ablatio.errors import UserError
from ablatio_std.sources.synthetic import SYMBOLS

SMALL: dict[str, dict[str, Any]] = {
    "arithmetic": {"texts": 2000}, "linear_functions": {"texts": 2000}, "bursty": {"texts": 2000},
    "ginc": {"documents": 300, "tokens": 200},
}  # fmt: skip


def texts(name: str, split: str, **knobs: Any) -> list[str]:
    return [d.text for d in sources.build(name, SMALL[name] | knobs).documents() if d.split == split]


@pytest.mark.parametrize("name", SMALL)
def test_texts_follow_from_the_knobs_and_splits_are_disjoint(name: str) -> None:
    train, held_out = texts(name, "train"), texts(name, "validation")
    assert len(train) > 100 and len(held_out) >= 15 and not {*train} & {*held_out}
    assert texts(name, "train") == train and texts(name, "train", seed=1) != train
    assert len({len(text) for text in train}) == len({len(text) for text in held_out}) == 1


@pytest.mark.oracle("source=arithmetic", "Python's integers")
def test_sums_are_right_and_held_out_pairs_are_in_one_split() -> None:
    pairs: dict[str, set[frozenset[int]]] = {}
    for split in ("train", "validation"):
        found = [
            tuple(map(int, m)) for t in texts("arithmetic", split) for m in re.findall(r"(\d\d)\+(\d\d)\?(\d{3})", t)
        ]
        assert len(found) == 3 * len(texts("arithmetic", split)) and all(a + b == c for a, b, c in found)
        pairs[split] = {frozenset((a, b)) for a, b, _ in found}
    assert not pairs["train"] & pairs["validation"]
    assert all(
        t.endswith(f"{int(t[-9:-7]) + int(t[-6:-4]):03d}"[::-1]) for t in texts("arithmetic", "train", reverse=True)
    )
    with pytest.raises(UserError, match=r"source\.held_out=1e-12"):
        texts("arithmetic", "validation", digits=1, held_out=1e-12)


def numbers(text: str, dim: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([SYMBOLS.find(c) for c in text]).reshape(-1, dim + 2) * 5.0 / (levels - 1) - 2.5
    return values[:, :dim], values[:, -1]


@pytest.mark.oracle("source=linear_functions", "numpy's least squares on the examples in context")
def test_the_function_follows_from_the_examples() -> None:
    """Least squares on dim + 6 examples predicts the next y within the rounding; the mean of y does not."""
    errors, guesses = [], []
    for text in texts("linear_functions", "validation", levels=61):
        x, y = numbers(text, 2, 61)
        w = np.linalg.lstsq(x[:8], y[:8], rcond=None)[0]
        inside = np.abs(x[8:] @ w) < 2.4  # beyond, y is cut off
        errors += np.abs(x[8:] @ w - y[8:])[inside].tolist()
        guesses += np.abs(y[8:])[inside].tolist()
    assert np.median(errors) < 0.05 < 0.3 < np.median(guesses)


@pytest.mark.oracle("source=bursty", "its rules, text by text")
def test_bursty_texts_follow_their_rules() -> None:
    bound: dict[str, str] = {}
    shown = []
    for text in texts("bursty", "train"):
        pairs = [(text[i : i + 3], text[i + 3]) for i in range(0, 32, 4)]
        assert text[32] == "?" and len(text) == 37
        for item, label in (*pairs, (text[33:36], text[36])):
            assert bound.setdefault(item, label) == label  # one label in all texts
        counts = Counter(item for item, _ in pairs)
        shown.append(sorted(counts.values())[-2:] == [3, 3] and counts[text[33:36]] == 3)
    assert 0.87 < np.mean(shown) < 0.93
    right = 0
    held_out = texts("bursty", "validation")
    for text in held_out:
        context = {text[i : i + 3]: text[i + 3] for i in range(0, 32, 4)}
        assert len(context) == 2 and not set(context) & set(bound)
        assert context[text[33:36]] == text[36] and len(set(context.values())) == 2
        right += context[text[33:36]] == text[3]
    assert abs(right / len(held_out) - 0.5) < 0.2  # the first label alone tells nothing
    zipf = Counter(t[33:36] for t in texts("bursty", "train", zipf=1.5, bursty=0.0))
    assert zipf.most_common(1)[0][1] > 10 * np.median(list(zipf.values()))


def predicted(source: Any, concept: int, seen: list[str], stay: np.ndarray) -> np.ndarray:
    """Forward recursion of one hidden Markov model: probability of each next symbol after `seen`."""
    table, entity, concepts = source.world()
    letters = np.array(list(SYMBOLS + "?"))[table]
    belief = stay
    for symbol in seen:
        belief = belief * (letters == symbol)
        if belief.sum() == 0:
            return np.zeros(len(SYMBOLS) + 1)
        belief = entity.T @ (belief / belief.sum()) @ concepts[concept]
    return np.array([belief[letters == c].sum() for c in SYMBOLS + "?"])


def likelihood(source: Any, concept: int, x: str, y: str, start: np.ndarray) -> float:
    return float(np.log(1e-9 + predicted(source, concept, list(x), start)[(SYMBOLS + "?").find(y)]))


@pytest.mark.oracle("source=ginc", "the forward recursion of its hidden Markov models")
def test_the_concept_tells_the_last_symbol_of_an_example() -> None:
    """With the concept known, the last symbol is predicted far better than by its frequency."""
    source: Any = sources.build("ginc", SMALL["ginc"] | {"length": 3})
    table, entity, concepts = source.world()
    assert np.allclose(entity.sum(1), 1) and np.allclose(concepts.sum(2), 1)
    assert (entity.diagonal() >= 0.9).all() and (np.sort(concepts, 2)[:, :, -1] > 0.3).mean() > 0.5
    uniform = np.full(table.shape, 1 / table.size)
    hits, frequency, total = 0, Counter[str](), 0
    for text in [d.text for d in source.documents() if d.split == "validation"]:
        examples = re.findall(r"\?(..)(.)", text)
        best = max(
            range(len(concepts)),
            key=lambda c: sum(predicted(source, c, list(x), uniform)[(SYMBOLS + "?").find(y)] for x, y in examples[:8]),
        )
        for x, y in examples[8:]:
            hits += (SYMBOLS + "?")[predicted(source, best, list(x), uniform).argmax()] == y
            frequency[y] += 1
            total += 1
    assert hits / total > 0.4 > 1.5 * frequency.most_common(1)[0][1] / total


TINY = [
    "tokenizer=symbols", "objective=answers", "data.rows=documents", "data.document_mask=false", "model.d_model=32",
    "model.n_layers=2", "model.n_heads=2", "train.batch_size=32", "train.steps=300", "train.val_every=null",
    "optimizer.lr=5e-3",
]  # fmt: skip


@pytest.mark.long
def test_a_model_learns_linear_functions_in_context(tmp_path: Path) -> None:
    """The loss of y falls with the number of examples before it, for functions that were in no training text."""
    import json

    knobs = ["source=linear_functions", "source.dim=1", "objective.skip=0", "model.max_len=36"]
    done = ablatio(["train", *TINY, *knobs, f"out={tmp_path}", "name=run"], tmp_path / "log", seconds=600)
    assert done.code == 0, done.err
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    by_place = [value for name, value in after.items() if name.startswith("position/")]
    assert by_place[0] - by_place[-1] > 0.4  # nats
