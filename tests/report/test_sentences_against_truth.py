"""Sentences of generated studies, read from report.md and checked against the scores they were made from.

The reader below shares no code with the report: it parses the Markdown, and does the statistics with scipy.
"""

import html
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.scored_studies import TRAIN_BYTES, Given, Scored, write_scored
from scipy import stats

from ablatio.errors import UserError
from ablatio.report.analysis.findings import find
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table

LOST = ("diverged", "failed")
FIGURES = (
    r"(?P<mean>[+-]?\d+\.\d+) (?P<unit>\S+) \[(?P<low>[+-]?\d+\.\d+), (?P<high>[+-]?\d+\.\d+)\]"
    r"(?: for this pair alone, \[(?P<wide>[^\]]+)\] for all (?P<m>\d+) comparisons together)?, "
    r"Holm p (?P<p>[<=] [\d.]+), n = (?P<n>\d+)"
)
BEATS = re.compile(rf"(?P<a>\w+) beats (?P<b>\w+) by {FIGURES}(?P<rest>.*)")
OPEN = re.compile(rf"(?P<a>\w+) and (?P<b>\w+): not resolved \({FIGURES}\)(?P<rest>.*)")
RANKS = re.compile(r"(?P<a>\w+) ranks above (?P<b>\w+), with diverged")
MORE = re.compile(r"(?P<arm>\w+) has (?P<amounts>[^,;]+)")


def lines_of(*folders: Path) -> list[str]:
    """The verdict's list in the Markdown: headline first."""
    text = markdown_text(find(read_table(folders)))
    found = [line[2:] for line in text.split("\n\n|")[0].splitlines() if line.startswith("- ")]
    return [html.unescape(re.sub(r"\\([\[\]_*`|])", r"\1", line)) for line in found]


@dataclass
class Truth:
    """What was put into a study: scores of finished runs in the unit of the comparison, and lost runs."""

    scores: dict[str, dict[int, float]]
    lost: dict[str, list[int]]  # seeds that diverged
    given: dict[str, Given]
    several_tokenizers: bool

    @property
    def diverged(self) -> dict[str, int]:
        return {arm: len(seeds) for arm, seeds in self.lost.items()}

    def holm(self, base: str) -> dict[str, float]:
        raw = {}
        for arm, of in self.scores.items():
            if arm == base:
                continue
            shared = sorted(of.keys() & self.scores[base].keys())
            pair = [[side[s] for s in shared] for side in (of, self.scores[base])]
            if self.lost[arm] or self.lost[base]:
                raw[arm] = ranked_p(*(self.scores[x] | dict.fromkeys(self.lost[x], math.inf) for x in (arm, base)))
            else:
                raw[arm] = float(stats.ttest_rel(*pair).pvalue) if len(shared) > 1 else math.inf
        found, largest = {}, 0.0
        for place, arm in enumerate(sorted(raw, key=raw.__getitem__)):
            largest = max(largest, raw[arm] * (len(raw) - place))
            found[arm] = min(1.0, largest)
        return found


def ranked_p(a: dict[int, float], b: dict[int, float]) -> float:
    """Signed ranks with infinity for a diverged run, over all sign patterns."""
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2 or not all(any(map(math.isfinite, x.values())) for x in (a, b)):
        return math.inf
    gaps = np.array([0.0 if a[s] == b[s] else a[s] - b[s] for s in shared])
    ranks = stats.rankdata(np.abs(gaps)) * (gaps != 0)
    sums = [abs(float(ranks @ np.array(signs))) for signs in itertools.product((-1, 1), repeat=len(gaps))]
    return float(np.mean(np.array(sums) >= abs(float(ranks @ np.sign(gaps))) - 1e-9))


def generated(rng: np.random.Generator) -> tuple[Scored, Truth]:
    """A study of up to seven seeds with random effects, budgets, tokenizers and lost runs."""
    names = ["base", *(f"arm{i}" for i in range(int(rng.integers(1, 5))))]
    seeds = range(1, int(rng.integers(3, 8)))
    tokenizers = rng.random() < 0.4
    given, scores, losses = {}, {}, {}
    shift = rng.normal(size=10) * 0.05
    for name in names:
        small = tokenizers and rng.random() < 0.5
        given[name] = Given(
            parameters=int(rng.choice([1_000_000, 1_000_000, 1_070_000, 3_000_000])),
            batch_size=int(rng.choice([4, 4, 4, 8])), seconds=float(rng.choice([60, 61, 90])),
            tokenizer="bytes" if small else "bpe", vocab_size=257 if small else 2048,
            train_tokens=TRAIN_BYTES if small else 1_000_000,
        )  # fmt: skip
        effect = float(rng.choice([0, 0, 0.1, -0.1]))
        per_byte = {s: (3 + effect + shift[s] + 0.01 * rng.normal()) / 3 for s in seeds}
        losses[name] = {s: v * TRAIN_BYTES / given[name].train_tokens for s, v in per_byte.items()}  # nats per token
        scores[name] = dict(losses[name])
        for s in seeds:
            if rng.random() < 0.06:
                scores[name][s] = str(rng.choice(LOST))
    several = len({(g.tokenizer, g.vocab_size) for n, g in given.items()
                   if any(not isinstance(v, str) for v in scores[n].values())}) > 1  # fmt: skip
    sound = {
        n: {
            s: v / math.log(2) * given[n].train_tokens / TRAIN_BYTES if several else v
            for s, v in of.items() if not isinstance(v, str)
        }
        for n, of in scores.items()
    }  # fmt: skip
    lost = {n: [s for s, v in of.items() if v == "diverged"] for n, of in scores.items()}
    study = Scored(scores, baseline="base", given=given)
    return study, Truth(sound, lost, given, several)


def test_sentences_of_generated_studies_are_true(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    seen = dict.fromkeys(("beats", "open", "bits/byte", "nats", "more", "diverged"), 0)
    for k in range(45):
        study, truth = generated(rng)
        said = lines_of(write_scored(tmp_path / str(k), study))
        corrected = truth.holm("base")
        for line in said:
            for pattern in (BEATS, OPEN):
                for found in pattern.finditer(line):
                    check_figures(found, truth, corrected, beats=pattern is BEATS)
                    seen["beats" if pattern is BEATS else "open"] += 1
                    seen[found["unit"]] += 1
                    seen["more"] += check_budgets(found, truth)
            for found in RANKS.finditer(line):
                assert corrected[found["a"] if found["b"] == "base" else found["b"]] <= 0.05
                assert truth.diverged[found["a"]] <= truth.diverged[found["b"]]
        for arm, count in truth.diverged.items():
            if count:
                runs = len(truth.scores[arm]) + count  # a failed run is no outcome of the arm
                told = f"{arm} diverged in {count} of {runs} runs", f"{arm} diverges more often", "have diverged runs"
                assert any(text in said[0] for text in told), said
                seen["diverged"] += 1
        ranked = {arm for arm in corrected if truth.lost[arm] or truth.lost["base"]}
        resolved = {arm for arm, p in corrected.items() if p <= 0.05} - ranked
        claimed = {m[side] for line in said for m in BEATS.finditer(line) for side in ("a", "b")} - {"base"}
        assert claimed == resolved, said  # every resolved pair is told, and no other
    assert all(count > 10 for count in seen.values()), seen


def check_figures(found: re.Match[str], truth: Truth, corrected: dict[str, float], beats: bool) -> None:
    a, b = found["a"], found["b"]
    assert not truth.diverged[a] and not truth.diverged[b], found[0]
    shared = sorted(truth.scores[a].keys() & truth.scores[b].keys())
    gaps = np.array([truth.scores[a][s] - truth.scores[b][s] for s in shared])
    reach = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
    ends = sorted([-gaps.mean() - reach, -gaps.mean() + reach] if beats else [gaps.mean() - reach, gaps.mean() + reach])
    assert float(found["mean"]) == pytest.approx(-gaps.mean() if beats else gaps.mean(), abs=6e-4), found[0]
    assert [float(found["low"]), float(found["high"])] == pytest.approx(ends, abs=6e-4)
    assert gaps.mean() < 0 if beats else True
    if found["wide"]:
        reach *= stats.t.ppf(1 - 0.025 / int(found["m"]), len(gaps) - 1) / stats.t.ppf(0.975, len(gaps) - 1)
        ends = [gaps.mean() - reach, gaps.mean() + reach]
        assert [float(x) for x in found["wide"].split(", ")] == pytest.approx(ends, abs=6e-4)
    elif not beats:
        assert float(found["low"]) <= 0 <= float(found["high"]), found[0]
    assert int(found["n"]) == len(gaps) and found["unit"] == ("bits/byte" if truth.several_tokenizers else "nats")
    p = corrected[a if b == "base" else b]
    shown = float(found["p"].split()[1])
    assert p < 0.001 if found["p"].startswith("<") else shown == pytest.approx(p, abs=6e-3)


def check_budgets(found: re.Match[str], truth: Truth) -> int:
    """Check each `X has ...` behind a sentence; return how many there were."""
    pair = {found["a"]: found["b"], found["b"]: found["a"]}
    marks = found["rest"].partition("unmatched: ")[2].split(";")[0]
    for more in MORE.finditer(marks):
        mine, other = truth.given[more["arm"]], truth.given[pair[more["arm"]]]
        for text in more["amounts"].split(" and "):
            real = ratio(text.split(" ", 1)[1] if text[0].isalpha() else text, mine, other)
            size = re.match(r"(?:(?P<share>[\d.]+) % more|(?P<times>[\d.]+) times|twice)", text)
            assert size, text
            told = 1 + float(size["share"]) / 100 if size["share"] else float(size["times"] or 2)
            assert told == pytest.approx(real, rel=0.03) and real > 1.009, (found[0], text)
    differ = [ratio(what, truth.given[found["a"]], truth.given[found["b"]]) for what in ("tokens", "parameters")]
    assert bool(marks) or all(0.99 < r < 1.0101 for r in differ), found[0]
    return len(MORE.findall(marks))


def ratio(what: str, mine: Given, other: Given) -> float:
    def bytes_of(g: Given) -> float:
        return g.tokens * TRAIN_BYTES / g.train_tokens

    for word, size in (
        ("parameters", lambda g: g.parameters), ("FLOPs", lambda g: g.parameters * g.tokens),
        ("tokens", lambda g: g.tokens), ("bytes", bytes_of), ("wall time", lambda g: g.seconds),
    ):  # fmt: skip
        if word in what:
            return float(size(mine) / size(other))
    raise AssertionError(what)


def scored(mean: float, seeds: int = 4, noise: float = 0.005, key: int = 0) -> dict[int, float | str]:
    rng = np.random.default_rng([key, int(1000 * mean)])
    return {s: float(mean + 0.05 * s + noise * rng.normal()) for s in range(1, seeds + 1)}


def test_tokenizers_are_compared_in_bits_per_byte_or_not_at_all(tmp_path: Path) -> None:
    """Bytes have fewer nats per token and more bits per byte than bpe, which wins."""
    tokens = {"bytes": Given(tokenizer="bytes", vocab_size=257, train_tokens=TRAIN_BYTES)}
    scores = {"bytes": scored(3.1), "bpe": scored(5.6, key=1)}
    study = write_scored(tmp_path / "s", Scored(scores, axis="tokenizer", given=tokens))
    said = lines_of(study)
    assert said[0].startswith("bpe beats bytes by 1.8") and "bits/byte" in said[0]
    assert "unmatched: bpe has 3 times the bytes of text" in said[0] and "Compared in bits per byte" in said[1]
    with pytest.raises(UserError, match=r"different tokenizers: .*\n    try: --metric val/bpb"):
        find(read_table([study]), "val/loss")
    bare = write_scored(tmp_path / "bare", Scored(scores, axis="tokenizer", given=tokens, bpb=False))
    assert lines_of(bare) == [
        "No verdict: val/loss is counted per token, the arms have different tokenizers (bytes 257, bpe 2048), and "
        "their runs have no bits per byte."
    ]
    assert find(read_table([bare])).comparison is None


def test_other_text_is_not_compared(tmp_path: Path) -> None:
    other = {"b": Given(text="cd" * 32)}
    two = write_scored(tmp_path / "two", Scored({"a": scored(3.0), "b": scored(2.0)}, given=other))
    assert lines_of(two) == ["No verdict: the arms have different text, so their scores cannot be compared."]
    three = {"a": scored(3.0), "b": scored(2.0), "c": scored(2.5)}
    said = lines_of(write_scored(tmp_path / "three", Scored(three, baseline="a", given=other)))
    assert said[0].startswith("c beats a by 0.49") and "Not compared with a" in said[1] and said[1].endswith(": b.")


def test_two_budgets_of_the_same_seeds_are_not_one_sample(tmp_path: Path) -> None:
    scores = {"a": scored(3.0, 3), "b": scored(2.9, 3)}
    long = {arm: Given(steps=200) for arm in scores}
    folders = [write_scored(tmp_path / "short", Scored(scores, baseline="a")),
               write_scored(tmp_path / "long", Scored(scores, baseline="a", given=long))]  # fmt: skip
    said = lines_of(*folders)
    assert said[0].startswith("b steps=200 beats a steps=200 by") and said[0].endswith("n = 3")
    assert said[1].endswith(": a steps=100, b steps=100.")
    assert {row.n for row in find(read_table(folders)).rows} == {3}


def test_an_arm_that_failed_whole_stays_in_the_correction(tmp_path: Path) -> None:
    gone: dict[int, float | str] = dict.fromkeys(range(1, 5), "failed")
    scores = {"a": scored(3.0), "b": scored(2.9), "c": gone}
    alone = BEATS.search(lines_of(write_scored(tmp_path / "2", Scored({k: scores[k] for k in "ab"}, baseline="a")))[0])
    said = lines_of(write_scored(tmp_path / "3", Scored(scores, baseline="a")))
    beside = BEATS.search(said[0])
    assert alone and beside and "c and a: no test possible, c has no finished run" in said
    p = [c.pairs[0].p for f in ("2", "3") if (c := find(read_table([tmp_path / f])).comparison)]
    assert p[1] == pytest.approx(2 * p[0])
    base = lines_of(
        write_scored(tmp_path / "base", Scored({"c": gone, "a": scores["a"], "b": scores["b"]}, baseline="c"))
    )
    assert "b beats a" in base[0] and any("The baseline c has no finished run" in line for line in base)


def test_many_arms_without_a_baseline_are_compared_with_the_best(tmp_path: Path) -> None:
    scores = {f"n{i}": scored(2.5 if i in (2, 7) else 3.0, key=i) for i in range(12)}
    said = lines_of(write_scored(tmp_path / "s", Scored(scores)))
    assert re.fullmatch(r"(n2, n7|n7, n2) are not told apart from the best; the other 10 are worse\.", said[0])
    assert sum("is worse than the best by 0." in line for line in said) == 10
    scores["n2"] = scored(2.0)
    assert lines_of(write_scored(tmp_path / "one", Scored(scores)))[0].startswith("n2 is the best of 12 arms, ahead")
    equal = {f"n{i}": scored(3.0, noise=0.02, key=i) for i in range(10)}
    assert lines_of(write_scored(tmp_path / "none", Scored(equal)))[0].startswith("None of 10 arms is told apart")


def test_a_rate_tuned_to_the_end_of_its_grid_is_noted(tmp_path: Path) -> None:
    trials = {"a": [0.001, 0.002, 0.004], "b": [0.001, 0.002, 0.004], "c": [0.001, 0.002, 0.004]}
    study = Scored(
        {"a": scored(3.0), "b": scored(2.9), "c": scored(2.8)}, baseline="a", trials=trials,
        tuned={"a": 0.002, "b": 0.004, "c": 0.001},
    )  # fmt: skip
    said = lines_of(write_scored(tmp_path / "s", study))
    ends = [line for line in said if "value that was tried" in line]
    assert [line.split(":")[0] for line in ends] == [
        "optimizer.lr=0.004 of b is the largest value that was tried",
        "optimizer.lr=0.001 of c is the smallest value that was tried",
    ]
