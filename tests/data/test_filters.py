"""The pipeline of filters: what it records, what it leaves alone, its cache, its workers."""

import json

import numpy as np
import pytest
from helpers import warm_python

from ablatio import filters
from ablatio.data.corpus import prepare
from ablatio.data.filters import FilteredSource, Pipeline, verdicts
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio.testing import sample_texts
from ablatio_std.tokenizers.trained import BPE

CHOICES = {"keywords": {}, "statistics": {"repetition": 0.0}, "dedup_document": {}, "pii": {}}


@pytest.fixture
def documents(toy):
    held = [Document(text, f"h{i}", "validation") for i, text in enumerate(sample_texts.held_out())]
    return toy([Document(text, str(i), "train") for i, text in enumerate(sample_texts.training())] + held)


def pipeline(cache, choices=CHOICES, **more):
    return Pipeline(choices, cache, 0.1, **more)


def test_counts_add_up_and_examples_are_from_the_text(documents, tmp_path):
    filtered = pipeline(tmp_path).over(documents)
    given = {d.id: d.text for d in documents.given}
    kept = [d for d in filtered.documents() if d.split == "train"]
    record, seen = filtered.record, sum(d.split == "train" for d in documents.given)
    assert [stage["filter"] for stage in record] == list(CHOICES)
    for stage in record:
        assert stage["seen"] == seen
        assert seen - stage["kept"] == sum(stage["reasons"].values())
        seen = stage["kept"]
        for example in stage["examples"]:
            if example["what"] == "dropped" and len(example["text"]) < 200:
                assert example["text"] in given[example["id"]]
    assert seen == len(kept) and 5 < seen < len(given)
    removed = sum(stage["characters_removed"] for stage in record)
    before = sum(len(d.text) for d in documents.given if d.split == "train")
    assert before - sum(len(d.text) for d in kept) == removed
    assert record[-1]["counts"]["email"] == 1 and "reasons" in record[0]


def test_each_filter_reads_what_the_one_before_kept(documents, tmp_path):
    """The same as the filters one by one, on lists."""
    texts = [d.text for d in documents.given if d.split == "train"]
    for name, knobs in CHOICES.items():
        found = verdicts(filters.build(name, knobs), texts, sample_texts.held_out())
        texts = [v.text for v in found if v.text and v.text.strip()]
    assert texts == [d.text for d in pipeline(tmp_path).over(documents).documents() if d.split == "train"]


def test_held_out_documents_stay(documents, tmp_path):
    filtered = pipeline(tmp_path, {"statistics": {"words": [60, 100]}}).over(documents)
    assert [d.text for d in filtered.documents() if d.split == "validation"] == sample_texts.held_out()


def test_workers_change_nothing(documents, tmp_path):
    choices = CHOICES | {"perplexity": {"high": 0.9}}
    alone, both = (pipeline(tmp_path / str(n), choices, workers=n).over(documents) for n in (0, 2))
    assert list(alone.documents()) == list(both.documents()) and alone.record == both.record


@pytest.mark.long
def test_ray_data_changes_nothing(documents, tmp_path):
    ray = pytest.importorskip("ray")
    try:
        alone = pipeline(tmp_path / "0").over(documents)
        there = pipeline(tmp_path / "ray", engine="ray").over(documents)
        assert list(alone.documents()) == list(there.documents()) and alone.record == there.record
    finally:
        ray.shutdown()


def test_the_cache_is_read_and_follows_filters_knobs_and_order(documents, tmp_path):
    first = pipeline(tmp_path).over(documents)
    kept = list(first.documents())
    reads = documents.reads
    again = pipeline(tmp_path).over(documents)
    assert list(again.documents()) == kept and documents.reads == reads
    prints = {first.fingerprint(), documents.fingerprint()}
    others = [dict(reversed(CHOICES.items())), CHOICES | {"pii": {"most": 1}}, {"pii": {}}]
    prints |= {FilteredSource(documents, pipeline(tmp_path, choice)).fingerprint() for choice in others}
    assert len(prints) == 5


def test_files_that_a_filter_reads_are_part_of_its_key(documents, tmp_path):
    (tmp_path / "good.txt").write_text("law and order\n\npeople")
    choices = {"classifier": {"good": str(tmp_path / "good.txt")}}
    before = pipeline(tmp_path, choices).key
    (tmp_path / "good.txt").write_text("law and order\n\nother people")
    assert pipeline(tmp_path, choices).key != before


def test_nothing_left_names_the_filter(documents, tmp_path):
    with pytest.raises(UserError, match=r"filter=language leaves no document: all \d+ are dropped") as caught:
        list(pipeline(tmp_path, {"pii": {}, "language": {"keep": ["ko"]}}).over(documents).documents())
    assert "try: ablatio show filter=language" in str(caught.value)
    assert not list((tmp_path / "filtered").glob("[!.]*"))


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("classifier", {}, "needs text of the wanted quality"),
        ("classifier", {"good": "nowhere.txt"}, "there is no file nowhere.txt"),
        ("language", {"keep": ["english"]}, "there is no language 'english'"),
        ("pii", {"replace": ["mail"]}, "there is no 'mail'"),
        ("perplexity", {"low": 0.8, "high": 0.2}, "expected low < high"),
    ],
)
def test_bad_settings(documents, tmp_path, name, knobs, said):
    with pytest.raises(UserError, match=said):
        list(pipeline(tmp_path, {name: knobs}).over(documents).documents())


def test_the_corpus_holds_the_filtered_text(documents, tmp_path):
    tokenizer = BPE(vocab_size=300)
    corpus = prepare(pipeline(tmp_path).over(documents), tokenizer, "bpe", tmp_path, 0.1)
    decoded = tokenizer.decode([int(i) for i in np.asarray(corpus.train)])
    assert "<EMAIL>" in decoded and "example.org" not in decoded
    assert next(TrainValSplit(documents, 0.1).documents("validation")).text == sample_texts.held_out()[0]


def test_a_run_keeps_what_filters_did(tmp_path):
    """Through the command line: the record is in the run folder, and the order of filters is in the id of the run."""
    small = ["tokenizer=bytes", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=32"]
    short = [
        "train.steps=2",
        "data.val_tokens=64",
        "trainer.progress=false",
        "trainer.threads=1",
        "source.since=1990",
        f"out={tmp_path}",
    ]
    done = warm_python.run(["-m", "ablatio", "train", *small, *short, "name=run", "filter=[statistics,pii]"])
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "data.json").read_text())["filters"][""]
    assert [stage["filter"] for stage in record] == ["statistics", "pii"] and record[0]["seen"] > 0


def test_the_id_follows_the_order(tmp_path):
    from ablatio.config.compose import compose_run
    from ablatio.training.run_folder import run_id

    chosen = ("[]", "[pii]", "[pii,language]", "[language,pii]")
    ids = [run_id(compose_run([f"filter={words}"]).config) for words in chosen]
    assert len({*ids}) == 4 and ids[0] == run_id(compose_run([]).config)
