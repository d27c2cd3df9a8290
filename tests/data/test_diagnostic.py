"""Synthetic tasks: texts follow the definition, only answers are scored, and a run learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import ablatio

from ablatio.data.corpus import prepare
from ablatio.data.splits import TrainValSplit
from ablatio.errors import UserError
from ablatio.registry.kinds import objectives, sources, tokenizers
from ablatio.training.evaluate import evaluate
from ablatio_std.sources.synthetic import KEYS, VALUES

MARKER, FILLER = 1, 0


def texts(**knobs):
    return [d.text for d in sources.build("mqar", {"texts": 300} | knobs).documents()]


@pytest.mark.oracle("source=mqar", "its rules, text by text")
@pytest.mark.parametrize("length, pairs", [(32, 4), (21, 4), (8, 1), (200, 31)])
def test_mqar_texts_follow_the_definition(length, pairs):
    """The definition: pairs with distinct keys, then each key queried once with its value, and dots around."""
    seen = set()
    for text in texts(length=length, pairs=pairs):
        assert len(text) == length - 1
        bound = dict(zip(text[: 2 * pairs : 2], text[1 : 2 * pairs : 2], strict=True))
        assert len(bound) == pairs and set(bound) <= set(KEYS) and set(bound.values()) <= set(VALUES)
        rest, asked = text[2 * pairs :], []
        while rest := rest.lstrip("."):
            assert rest[0] == "?" and bound[rest[1]] == rest[2]
            asked.append(rest[1])
            rest = rest[3:]
        assert sorted(asked) == sorted(bound)
        seen.add(tuple(list(bound).index(key) for key in asked))
    assert len(seen) > min(pairs, 5) or pairs == 1  # the order of the questions tells nothing


def test_mqar_depends_on_its_knobs_only():
    assert texts() == texts() and texts(texts=1500)[:300] == texts()
    assert texts(seed=1) != texts()
    marks = {sources.build("mqar", k).fingerprint() for k in ({}, {"pairs": 3}, {"seed": 1}, {"length": 33})}
    assert len(marks) == 4
    with pytest.raises(UserError, match="need 21"):
        sources.build("mqar", {"length": 20})


def test_answers_cannot_be_guessed_from_position_or_frequency():
    """Values are uniform, and the first queried key is equally often at each place."""
    made = texts(texts=4000)
    values = np.array([VALUES.index(c) for t in made for c in t[1:8:2]])
    counts = np.bincount(values, minlength=len(VALUES))
    assert abs(counts - counts.mean()).max() < 6 * counts.mean() ** 0.5
    first = [t[:8:2].index(t[t.index("?") + 1]) for t in made]
    assert abs(np.bincount(first) - 1000).max() < 6 * 1000**0.5


def test_splits_are_disjoint():
    division = TrainValSplit(sources.build("mqar", {"texts": 3000, "pairs": 1, "length": 8}), 0.1)
    train, held_out = ({d.text for d in division.documents(split)} for split in ("train", "validation"))
    assert held_out and not train & held_out


def rows(text_list):
    tokenizer = tokenizers.build("symbols", {})
    ids = [[tokenizer.eos, *tokenizer.encode([t])[0].tolist()] for t in text_list]
    return torch.tensor(ids), tokenizer


def objective(**knobs):
    return objectives.build("answers", knobs, vocab_size=97, eos=96, max_len=32)


def test_only_queried_values_are_scored():
    made = texts(texts=100)
    tokens, tokenizer = rows(made)
    example = objective()(tokens, None, torch.Generator())
    for text, targets, weights in zip(made, example.targets, example.weights, strict=True):
        expected = [i for i in range(2, len(text)) if text[i - 2] == "?"]
        assert weights.nonzero().flatten().tolist() == expected
        answers = tokenizer.decode(targets[weights > 0].tolist())
        assert len(answers) == 4 and all(a in text[1:8:2] for a in answers)


def by_book(row, skip, count):
    """Reference: token by token."""
    inside, left, wait, scored = False, 0, -1, []
    for token in row:
        if token == 96:
            inside, left, wait = True, 0, -1
            scored.append(False)
            continue
        if wait == 0:
            left, wait = (10**6 if count is None else count), -1
        scored.append(inside and left > 0)
        left -= 1
        if wait > 0:
            wait -= 1
        if token == MARKER:
            wait = skip
    return scored[1:]


@pytest.mark.oracle("objective=answers", "loop over tokens")
@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 2, None])
def test_answer_positions_in_packed_rows(skip, count):
    """Documents may start anywhere in the row; one that started before the row has no answers."""
    tokens = torch.randint(2, 90, (40, 50), generator=torch.Generator().manual_seed(skip))
    for row in tokens:
        places = torch.randperm(50, generator=torch.Generator().manual_seed(int(row[0])))[:4].sort().values
        row[places[1::2]] = MARKER  # at least `skip` apart below, so that markers never wait for one another
        row[places[::2]] = 96
    far = [min(b - a for a, b in zip([-9, *m], [*m, 99], strict=True)) > 4 for m in _markers(tokens)]
    tokens = tokens[torch.tensor(far)]
    assert len(tokens) > 10
    weights = objective(skip=skip, count=count)(tokens, None, torch.Generator()).weights
    assert weights.tolist() == [[float(s) for s in by_book(row.tolist(), skip, count)] for row in tokens]


def _markers(tokens):
    return [(row == MARKER).nonzero().flatten().tolist() for row in tokens]


def test_accuracy_counts_correct_answers(tmp_path: Path):
    """For a model that is correct if and only if the answer's id is even."""

    class Says(torch.nn.Module):
        vocab_size = 97

        def token_scores(self, example):
            hit = example.targets % 2 == 0
            return torch.ones(example.targets.shape), hit

    tokenizer = tokenizers.build("symbols", {})
    corpus = prepare(sources.build("mqar", {"texts": 500}), tokenizer, "symbols", tmp_path, 0.2)
    tokens = torch.from_numpy(corpus.validation[: 32 * 60 + 1].astype(np.int64)).unfold(0, 33, 32)
    score = evaluate(Says(), objective(), [{"tokens": tokens}], tokenizer.token_bytes(), torch.device("cpu"))
    answers = [int(r[i]) for r in tokens for i in range(2, 33) if r[i - 2] == MARKER and r[i] != 96]
    assert score.tokens == len(answers) == 4 * 60
    assert score.accuracy == pytest.approx(sum(a % 2 == 0 for a in answers) / len(answers))


TASK = [
    "source=mqar", "source.texts=2000", "tokenizer=symbols", "objective=answers", "data.rows=documents",
    "data.document_mask=false", "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "model.max_len=32",
    "train.batch_size=32", "train.steps=40", "train.val_every=null", "optimizer.lr=1e-2", "schedule.warmup=0.05",
]  # fmt: skip


@pytest.mark.slow
def test_run_reports_accuracy(tmp_path: Path):
    """In 40 steps a model learns that answers are values: the loss falls to ln 31, accuracy is 1 / 31."""
    done = ablatio(["train", *TASK, f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert done.code == 0, done.err
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    assert after["loss"] < np.log(31) * 1.05
    assert 0.01 < after["accuracy"] <= 1


def test_texts_without_answers_are_refused(tmp_path: Path):
    none = ablatio(["train", *TASK, "objective.marker=70", f"out={tmp_path}", "name=never"], tmp_path / "log")
    assert none.code == 2 and "no token of the validation rows is scored" in none.err


@pytest.mark.slow
def test_batch_without_answers_leaves_the_weights_unchanged(tmp_path: Path):
    """Questions are rare: most batches of two rows have none, and the run continues."""
    lines = [f"{i:04d}abcdefgh" + ("?k0" if i % 12 == 0 else "...") for i in range(400)]
    path = tmp_path / "rare.txt"
    path.write_text("\n".join(lines))
    settings = [s for s in TASK if not s.startswith("source") and "max_len" not in s and "batch_size" not in s]
    done = ablatio(
        ["train", *settings, "source=text", f"source.path={path}", "source.separator=\\n", "data.val_fraction=0.3",
         "model.max_len=16", "train.batch_size=2", "optimizer.weight_decay=0", f"out={tmp_path}", "name=rare"],
        tmp_path / "log",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert 0 < json.loads((tmp_path / "rare" / "summary.json").read_text())["after"]["loss"] < 5
