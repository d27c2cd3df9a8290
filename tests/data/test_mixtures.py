"""Rows of mixtures: drawn as their shares say, functions of the batch number alone, counted, exact on resume."""

import hashlib
import json
import math

import numpy as np
import pytest

from ablatio.config.compose import compose_run
from ablatio.data.batches import TrainBatches
from ablatio.data.mixtures import Draws, MixedBatches
from ablatio.data.order import EasiestFirst, RowPlan, WindowOrder, uniforms
from ablatio.data.splits import hash_split
from ablatio.errors import ConfigError, UserError

SHARES = np.array([0.6, 0.3, 0.1])
LENGTH = 8


def fixed(step):
    return SHARES


def draws(plan=None, shares=fixed, seed=1):
    return Draws(shares, 3, seed, plan or RowPlan(4), LENGTH)


def streams(plan):
    """Three streams whose tokens say where they stand: 10000 * source + position."""
    made = {}
    for i, n in enumerate((400, 300, 100)):
        tokens = (10_000 * (i + 1) + np.arange(n)).astype(np.uint16)
        made[str(i)] = TrainBatches(tokens, WindowOrder(n, LENGTH, 3), plan, eos=0)
    return made


def test_draws_are_uniforms_against_the_cumulated_shares():
    """A loop over rows, one draw each from the same stream of random numbers."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 0x6D6978, 0])))
    expected = [int(np.searchsorted(SHARES.cumsum(), generator.random(), side="right")) for _ in range(2400)]
    found = draws()
    assert np.concatenate([found.sources(step) for step in range(600)]).tolist() == expected
    assert uniforms(1, np.array([5, 9])).tolist() == [uniforms(1, np.array([i]))[0] for i in (5, 9)]


def test_what_was_drawn_equals_the_shares_within_the_standard_error():
    tokens = draws().tokens(5000)
    share, error = tokens / tokens.sum(), np.sqrt(SHARES * (1 - SHARES) / 20_000)
    assert (np.abs(share - SHARES) < 4 * error).all() and tokens.sum() == 20_000 * LENGTH


def test_rows_of_a_source_are_its_own_rows_in_order():
    """Whatever the mixture, a source's rows are those of a run on it alone: every token is a target once per epoch."""
    plan = RowPlan(4)
    mixed, alone = MixedBatches(streams(plan), draws(plan)), streams(plan)
    seen = {i: [] for i in range(3)}
    for number in range(200):
        batch = mixed[number]
        for row, source in zip(batch["tokens"], batch["sources"].tolist(), strict=True):
            assert (row // 10_000 == source + 1).all()
            seen[source].append(row.tolist())
    for i, rows in seen.items():
        assert rows == alone[str(i)].gather(np.arange(len(rows)), LENGTH).tolist()


def test_any_batch_at_any_time():
    plan = RowPlan(4, 2)
    forth, back = MixedBatches(streams(plan), draws(plan)), MixedBatches(streams(plan), draws(plan))
    there = {n: forth[n]["tokens"].tolist() for n in (0, 1, 700, 2600)}
    assert there == {n: back[n]["tokens"].tolist() for n in (2600, 700, 1, 0)}


def test_ranks_divide_a_batch():
    plan = RowPlan(4)
    whole = MixedBatches(streams(plan), draws(plan))[7]["tokens"].tolist()
    halves = [MixedBatches(streams(plan), draws(plan), rank=r, world=2)[7]["tokens"].tolist() for r in range(2)]
    assert whole == halves[0] + halves[1]


def test_lengths_and_batches_that_change():
    """Tokens are counted where rows change: a source continues after as many tokens as were drawn from it."""
    plan = RowPlan(4, 1, lambda step, tokens: (2 + step % 3, 4 if step < 10 else 8))
    found, count = draws(plan), np.zeros(3, dtype=np.int64)
    for step in range(300):
        assert found.tokens(step).tolist() == count.tolist()
        rows, length = plan.step(step)[1], plan.row_length(step, LENGTH)
        assert len(found.sources(step)) == rows
        count += np.bincount(found.sources(step), minlength=3) * length
    _, sources, places = found.batch(50)
    for i in range(3):
        here = places[sources == i]
        assert here.tolist() == list(
            range(-(-int(found.tokens(50)[i]) // 8), -(-int(found.tokens(50)[i]) // 8) + len(here))
        )


def test_shares_that_change():
    later = np.array([0.0, 0.0, 1.0])
    found = draws(shares=lambda step: SHARES if step < 300 else later)
    assert set(np.concatenate([found.sources(s) for s in range(300, 400)]).tolist()) == {2}
    assert [found.sources(s).tolist() for s in range(300)] == [draws().sources(s).tolist() for s in range(300)]


def test_easiest_rows_first():
    documents, difficulty = np.array([0, 100, 200]), np.array([3.0, 1.0, 2.0])
    order = EasiestFirst(documents, difficulty, 300, 1)
    rows = np.arange(500)
    assert {int(s) // 100 for s in order.starts(rows, 10, 0.33)} == {1}
    assert {int(s) // 100 for s in order.starts(rows, 10, 0.65)} == {1, 2}
    starts = order.starts(rows, 10, 1.0)
    assert set(starts.tolist()) == set(range(0, 290, 10))  # the last row has no token after it
    assert order.starts(rows[7:9], 10, 1.0).tolist() == starts[7:9].tolist()


SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=32",
         "data.val_tokens=256", "trainer.progress=false", "trainer.threads=1", "source=several"]  # fmt: skip


@pytest.fixture
def of(tmp_path):
    """`source.of` for two small files."""
    for name, letters in (("vowels", "aeiou "), ("digits", "0123456789")):
        chance = np.random.default_rng(len(name))
        texts = ["".join(chance.choice([*letters], 90)) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return f"source.of=[jsonl:{tmp_path}/vowels.jsonl,jsonl:{tmp_path}/digits.jsonl]"


def run(folder, of, *settings, steps=12):
    import ablatio

    where = f"out={folder.parent}", f"name={folder.name}", "tokenizer=bytes"
    made = ablatio.train(*SMALL, of, f"train.steps={steps}", "train.log_every=1", *where, *settings)
    return made.summary


def test_a_run_scores_each_source_and_counts_its_tokens(of, tmp_path):
    summary = run(tmp_path / "run", of, "mixture=weights", "mixture.weights=[0.25,0.75]", steps=100)
    drawn = summary["sources"]
    record = json.loads((tmp_path / "run" / "data.json").read_text())["mixture"]
    record_tokens = record["training_tokens"]
    assert sum(d["tokens"] for d in drawn.values()) == summary["tokens"] == 100 * 4 * 32
    for name, share in (("vowels", 0.25), ("digits", 0.75)):
        found = drawn[name]
        assert found["expected"] == pytest.approx(share)
        assert found["error"] == pytest.approx(math.sqrt(0.25 * 0.75 / 400))
        assert abs(found["share"] - share) < 4 * found["error"]
        assert summary[f"val/loss/{name}"] < 4
        assert found["epochs"] * record_tokens[name] == pytest.approx(found["tokens"])
    after = [summary[f"val/loss/{name}"] for name in drawn]
    assert min(after) < summary["val/loss"] < max(after)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "val/bpb/vowels" in header
    assert record["shares"] == {"vowels": 0.25, "digits": 0.75}


@pytest.mark.parametrize(
    "settings",
    [
        ["mixture=weights", "mixture.weights=stages([1,0]@0,[0.1,0.9]@0.5)", "data.length=stages(16@0,32@0.4)"],
        ["mixture=temperature", "curriculum=anneal", "curriculum.ramp=true", "curriculum.start=0.3"],
        ["mixture=repeat", "curriculum=stages", "curriculum.by=word_length", "filter=[dedup_document]"],
    ],
)
def test_resume_is_exact(of, tmp_path, settings):
    """A run that stops in its middle continues with the same rows, weights and counts."""
    import ablatio

    whole = run(tmp_path / "whole", of, *settings)

    import lightning.pytorch as pl

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 5

    where = f"out={tmp_path}", "name=parts", "tokenizer=bytes"
    ablatio.train(*SMALL, of, "train.steps=12", "train.log_every=1", *where, *settings, callbacks=[Stop()])
    parts = ablatio.resume_run(tmp_path / "parts").summary
    for key in ("val/loss", "sources", "tokens"):
        assert parts[key] == whole[key]


def test_filters_run_per_source_and_arms_share_the_tokenizer(of, tmp_path):
    import ablatio

    more = "tokenizer=bpe", "tokenizer.vocab_size=280"
    made = []
    for name, settings in (("a", []), ("b", ["filter=[coreset]", "filter.coreset.by=random"])):
        where = f"out={tmp_path}", f"name={name}"
        made.append(ablatio.train(*SMALL, *more, of, "train.steps=1", *where, "mixture=proportional", *settings))
    states = [json.loads((tmp_path / name / "tokenizer.json").read_text())["state"] for name in "ab"]
    prints = [json.loads((tmp_path / name / "manifest.json").read_text())["data"]["fingerprint"] for name in "ab"]
    assert states[0] == states[1] and prints[0] == prints[1]
    record = json.loads((tmp_path / "b" / "data.json").read_text())["filters"]
    assert sorted(record) == ["digits", "vowels"] and record["digits"][0]["kept"] < record["digits"][0]["seen"]


def test_training_text_is_cleared_of_the_held_out_text_of_other_sources(tmp_path):
    """The second source repeats held-out texts of the first with more words, so that a hash splits them anew."""
    import ablatio

    def of_split(texts, split):
        return [t for t in texts if hash_split(hashlib.sha256(t.encode()).digest(), 0.3) == split]

    one = [" ".join(f"w{(i * 31 + k * 7) % 97}x{i}" for k in range(20)) for i in range(60)]
    inside = [f"{text} and more" for text in of_split(one, "validation")]
    two = inside + [" ".join(f"other{i * k}" for k in range(20)) for i in range(1, 40)]
    for name, texts in (("one", one), ("two", two)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    of = f"source.of=[jsonl:{tmp_path}/one.jsonl,jsonl:{tmp_path}/two.jsonl]"
    words = ["train.steps=1", "data.val_fraction=0.3", "tokenizer=bytes", "mixture=weights", "filter=[dedup_dataset]"]
    ablatio.train(*SMALL, of, *words, f"out={tmp_path}", "name=run")
    record = json.loads((tmp_path / "run" / "data.json").read_text())["filters"]
    contaminated = sum(text in inside for text in of_split(two, "train"))
    assert contaminated > 3 and record["two"][0]["reasons"] == {"contains held-out text": contaminated}
    assert record["two"][0]["seen"] == len(of_split(two, "train"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["mixture=weights"], "draws from several sources, and source=sotu is one"),
        (["source=several", "source.of=[sotu,mqar]", "mixture=weights", "mixture.weights=[1]"], "has 1 shares, and"),
        (["source=several", "source.of=[sotu,mqar]", "mixture=weights", "mixture.weights=[0.5,0.4]"], "sum to 0.9"),
        (["source=several", "curriculum=skills", "curriculum.order=[gsm_symbolic]"], "try: mixture=proportional"),
        (["curriculum=skills"], "changes the shares of several sources, and source=sotu is one"),
        (["source=several", "mixture=weights", "mixture.weights={sotu:1}"], "list of float, got {"),
        (["task=sft", "source=gsm_symbolic", "curriculum=stages"], "are not drawn by a curriculum"),
        (["task=sft", "source=gsm_symbolic", "filter=[pii]"], "filters read documents"),
    ],
)
def test_refused_before_any_data_is_read(settings, said):
    with pytest.raises(ConfigError, match=said):
        compose_run(settings)


def test_evaluate_scores_each_source_as_the_run_did(of, tmp_path, capsys):
    """On the rows of the run; with overlapping rows, too, but not while it learns from one text."""
    import ablatio
    from ablatio.cli.evaluate import run as evaluate

    summary, folder = run(tmp_path / "run", of, "mixture=weights"), tmp_path / "run"
    own = {f"{score}/{name}" for score in ("loss", "bpb") for name in ("vowels", "digits")}
    found = ablatio.open_run(folder).evaluate(tokens=256)
    assert {key: found[key] for key in own} == {key: summary[f"val/{key}"] for key in own}
    assert evaluate([str(folder), "--stride", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Every token is scored with more text before it.
    strided = [float(line.split()[1]) for line in lines if line.startswith(("  vowels ", "  digits "))]
    plain = ablatio.open_run(folder).evaluate()
    assert strided == pytest.approx([plain["loss/vowels"], plain["loss/digits"]], abs=0.2)
    assert strided != pytest.approx([plain["loss/vowels"], plain["loss/digits"]], abs=1e-6)
    with pytest.raises(UserError, match="learns from one held-out text, and this run has those of vowels, digits"):
        ablatio.open_run(folder).evaluate(adapt=0.1)


def test_proxies_learn_and_find_shares_that_are_kept(of, tmp_path, monkeypatch):
    """DoReMi and RegMix on real models; the second run reads the shares from the cache."""
    doremi = "mixture=doremi", "mixture.steps=8", "mixture.width=8", "mixture.batch=4"
    first = run(tmp_path / "a", of, *doremi, steps=2)["sources"]
    monkeypatch.setattr("ablatio.training.proxies.Proxies.start", None)
    again = run(tmp_path / "b", of, *doremi, steps=2)["sources"]
    assert {n: d["expected"] for n, d in first.items()} == {n: d["expected"] for n, d in again.items()}
    monkeypatch.undo()
    regmix = "mixture=regmix", "mixture.steps=30", "mixture.width=8", "mixture.runs=6", "mixture.lr=0.02"
    for name in ("vowels", "digits"):
        found = run(tmp_path / f"for_{name}", of, *regmix, f"mixture.match={name}", steps=2)["sources"]
        assert found[name]["expected"] > 0.5
