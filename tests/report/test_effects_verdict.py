"""Sentences and tables on effects of settings: levels, aliases, alternatives, budgets, and the follow-up command."""

import csv
import dataclasses
import importlib
import io
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from helpers.runs import TINY, ablatio
from helpers.studies import MIXED, Fake, plackett_burman, write_study
from rich.console import Console

from ablatio.api.reports import write_report
from ablatio.report.analysis.findings import Findings, find
from ablatio.report.effects_table import effects_csv, effects_latex
from ablatio.report.html.page_data import content
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import Table, read_table
from ablatio.report.terminal import arm_table

THREE_LEVELS = {
    "position": ["rope", "alibi", "none"],
    "norm": ["rms", "layer", "dyt"],
    "activation": ["gelu", "silu", "relu"],
}


@pytest.fixture
def validity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The simulation of benchmarks/, whose reader of sentences shares no code with the report."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("validity_effects")


def cell_named(validity: ModuleType, words: str):
    return next(c for c in validity.CELLS if words in c.name)


def test_sentences_of_simulated_studies_name_the_levels_that_differ(validity: ModuleType) -> None:
    found = validity.simulate(cell_named(validity, "one level worse by 0.08"), 60, seed=5)
    assert found["found"]["share"] == 1 and found["false_claims"]["share"] <= 9 / 60  # 3 expected
    assert found["all_intervals_cover"]["share"] >= 51 / 60


@pytest.mark.parametrize("words", ["null: Plackett-Burman, 11 factors, 1 seed", "null: orthogonal array 3^4, 2 seeds"])
def test_studies_without_effects_rarely_claim_any(validity: ModuleType, words: str) -> None:
    assert validity.simulate(cell_named(validity, words), 60, seed=6)["false_claims"]["share"] <= 9 / 60


def test_interaction_alone_never_becomes_ten_main_effects(validity: ModuleType) -> None:
    """11 factors, no main effect, one interaction: no main effect is claimed, and the interaction is named."""
    found = validity.simulate(cell_named(validity, "interaction of 0.08: Plackett-Burman, 3 seeds"), 8)
    assert found["false_claims"]["share"] <= 2 / 8 and found["found"]["share"] == 1
    assert found["claims_left_to_interactions"] == 1


def test_reader_of_sentences_sees_false_claims(validity: ModuleType) -> None:
    """The simulation counts the sentences that the report made before: a wrong pair, an interaction as main effect."""
    cell = cell_named(validity, "one level worse by 0.08")
    wrong = validity.claims_of(["f0, from f0a to f0c: +0.081 nats [+0.071, +0.091], corrected p < 0.001"])
    right = validity.claims_of(["f0, from f0a to f0b: +0.081 nats [+0.071, +0.091], corrected p < 0.001"])
    assert [validity.is_false(cell, c) for c in (*wrong, *right)] == [True, False]
    cell = cell_named(validity, "interaction of 0.08: Plackett-Burman, 3 seeds")
    text = "f2, from f2a to f2b: +0.027 nats [+0.017, +0.037], corrected p < 0.001"
    named = f"{text}; one interaction, f0 x f1, explains this about as well: no main effect is claimed"
    assert [validity.is_false(cell, validity.claims_of([t])[0]) for t in (text, named)] == [True, False]


def found_in(folder: Path, fake: Fake) -> Findings:
    return find(read_table([write_study(folder, fake)]))


def test_all_outputs_have_the_same_effects(tmp_path: Path) -> None:
    fake = Fake(THREE_LEVELS, effects={"position=alibi": 0.05}, pairs={("norm=dyt", "activation=relu"): 0.05})
    found = found_in(tmp_path / "s", fake)
    assert found.factors is not None
    rows = list(csv.DictReader(io.StringIO(effects_csv(found.factors))))
    known = {(c.name, c.value, c.p) for c in found.factors.screen.contrasts}
    assert {(r["effect"], float(r["difference"]), float(r["p"])) for r in rows} == known
    pairs = [r for r in rows if r["effect"] == "position"]
    assert [r["contrast"] for r in pairs] == ["rope to alibi", "rope to none", "alibi to none"]
    first = f"{float(pairs[0]['difference']):+.4f}"
    console = Console(width=140, file=io.StringIO(), force_terminal=False)
    arm_table.show(console, found)
    assert isinstance(console.file, io.StringIO)
    lines = effects_latex(found.factors).splitlines()
    for text in (console.file.getvalue(), markdown_text(found), *(line for line in lines if "rope to alibi" in line)):
        assert first in text and "rope to alibi" in text and "< 0.001" in text.replace("&lt;", "<")
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    assert len(body) == 9 + 3 and {line.count(" & ") for line in body} == {4}
    page = content(found)["factors"]
    best = min(float(r["p"]) for r in pairs)
    assert next(t["p"] for t in page["terms"] if t["factors"] == ["position"]) == pytest.approx(best)
    assert {p.name for p in write_report(found, [tmp_path / "s"]).iterdir()} >= {"effects.csv", "effects.tex"}


def test_interaction_of_a_full_design_is_named_with_its_levels(tmp_path: Path) -> None:
    axes = {"norm": ["rms", "layer"], "position": ["rope", "none"], "size": ["s", "m", "l"]}
    found = found_in(tmp_path / "s", Fake(axes, pairs={("norm=layer", "position=none"): 0.06}))
    line = next(s for s in found.said() if s.startswith("norm x position"))
    assert "from rms to layer, the change with none exceeds that with rope by +0.0" in line
    assert any(s.startswith("norm x position：从 rms 到 layer，在 none 下") for s in found.said("zh"))


def test_latex_escapes_names(tmp_path: Path) -> None:
    axes = {"a_b": ["x&y", "50%"], "c": ["{#}", "$\\input{f}$"]}
    found = found_in(tmp_path / "s", Fake(axes))
    assert found.factors is not None
    text = effects_latex(found.factors)
    assert r"a\_b & x\&y to 50\%" in text and r"\{\#\} to \$\textbackslash{}input\{f\}\$" in text


def changed(table: Table, key: str, value: str, **changes: object) -> Table:
    """The table with other facts of the runs whose arm has this value."""
    runs = [dataclasses.replace(r, **changes) if r.arm[key] == value else r for r in table.runs]
    return dataclasses.replace(table, runs=runs, notes=[])


def test_axis_that_changes_the_budget_keeps_the_effects(tmp_path: Path) -> None:
    table = read_table([write_study(tmp_path / "s", plackett_burman())])
    found = find(changed(table, "position", "alibi", size={"tokens": 9e6}))
    assert found.factors is not None and len(found.factors.settings) == 7
    note = next(n for n in found.table.notes if "tokens" in n and "effect" in n)
    assert note.startswith("the runs were trained on 4,096,000 to 9,000,000 tokens: an effect of position includes")


def test_effects_across_tokenizers_are_in_bits_per_byte(tmp_path: Path) -> None:
    table = read_table([write_study(tmp_path / "s", plackett_burman())])
    run = table.runs[0]
    other = {**run.config, "tokenizer": {"name": "words"}}
    found = find(changed(table, "norm", "layernorm", config=other))
    assert found.factors is not None and found.factors.metric == "val/bpb"
    assert "bits/byte [" in " ".join(found.said()) and " nats" not in " ".join(found.said())
    assert any("bits per byte" in sentence for sentence in found.said())


def test_a_sequential_study_has_no_effects(tmp_path: Path) -> None:
    """Their p would not allow for the looks, after which single arms stop."""
    axes = {"norm": ["rms", "layer"], "position": ["rope", "none"]}
    table = read_table([write_study(tmp_path / "s", Fake(axes, effects={"norm=layer": 0.2}))])
    assert find(table).factors is not None
    looked = dataclasses.replace(table.study, sequential={"baseline": "another", "comparisons": 3, "looks": [{}]})
    found = find(dataclasses.replace(table, study=looked, notes=[]))
    assert found.factors is None and any("does not allow for its looks" in note for note in found.table.notes)


def test_effects_across_texts_are_refused_with_a_reason(tmp_path: Path) -> None:
    table = read_table([write_study(tmp_path / "s", plackett_burman())])
    run = table.runs[0]
    other = {**run.manifest, "data": {"fingerprint": "other"}}
    found = find(changed(table, "norm", "layernorm", manifest=other))
    assert found.factors is None
    assert any("effects of settings are not estimated: the runs were scored on different texts" in n
               for n in found.table.notes)  # fmt: skip


def test_diverged_runs_are_counted_beside_the_effects(tmp_path: Path) -> None:
    fake = plackett_burman()
    fake.states = {("norm=layernorm", 2): "diverged"}
    assert "Effects leave out runs that diverged: 4." in found_in(tmp_path / "s", fake).said()


@pytest.mark.long
def test_follow_up_command_extends_the_study(tmp_path: Path, text_file: Path) -> None:
    """The command of the verdict runs as it stands, keeps the runs of the study, and removes the alias."""
    out = tmp_path / "my runs"
    words = [*TINY, f"source.path={text_file}", "train.steps=4", "train.val_every=null", f"out='{out}'", "name=screen",
             "optimizer.lr=1e-4,3e-2", "norm=layernorm,rmsnorm", "activation=gelu,relu", "design=fractional",
             "design.generators='a b ab'", "seed=1,2", "table=0"]  # fmt: skip
    assert ablatio(["train", "-m", *words], tmp_path / "log").code == 0
    first = find(read_table([out / "screen"]))
    sentence = next(s for s in first.said() if "more runs tell them apart: " in s)
    assert sentence.startswith("8 more runs") and "cannot tell it from norm x activation" in " ".join(first.said())
    command = shlex.split(sentence.partition("tell them apart: ")[2])
    assert command[0] == "ablatio" and "design.foldover=all" in command
    ended = ablatio(command[1:], tmp_path / "log")
    assert ended.code == 0, ended.err
    after = find(read_table([out / "screen"]))
    assert {r.id for r in first.table.counted} < {r.id for r in after.table.counted}
    assert len(after.table.counted) == 16 and after.factors is not None
    assert after.factors.aliases("optimizer.lr") == () and after.factors.follow_up is None
    assert after.said()[0].startswith("1 of 3 settings have an effect: optimizer.lr.")


def test_no_command_is_shown_that_would_not_compose(tmp_path: Path) -> None:
    """A study whose axes name parts that do not exist, and one whose command is unknown."""
    folder = write_study(tmp_path / "s", plackett_burman())
    table = read_table([folder])
    for overrides in ((), ("norm=rmsnorm,nosuchnorm", "position=rope,alibi", "design=plackett_burman")):
        table.study.overrides = overrides
        found = find(dataclasses.replace(table, notes=[]))
        assert found.factors is not None and found.factors.follow_up is None
        assert not any("tell them apart: " in s for s in found.said())


def test_effects_come_before_the_arms_of_a_factorial(tmp_path: Path) -> None:
    """In the terminal, report.md and the page's data: effects, their table, the arms' answer; no unresolved pairs."""
    fake = Fake(
        axes={"norm": ["rmsnorm", "layernorm"], "position": ["rope", "alibi"]},
        effects={"norm=layernorm": 0.05}, noise=0.004, seeds=(1, 2, 3),
    )  # fmt: skip
    found = find(read_table([write_study(tmp_path / "s", fake)]))
    for language in ("en", "zh"):
        said, words = found.said(language), found.verdicts[language]  # type: ignore[index]
        assert said[0] == words.headline and "norm" in said[0] and said[1:3] == [*words.effects]
        assert "norm x position" in said[2] and said[found.leading] == words.answer
        assert all(s.kind == "resolved" for s in words.sentences)
    console = Console(width=80, record=True, force_terminal=False)
    arm_table.show(console, found)
    shown, text = console.export_text(), markdown_text(found)
    assert shown.index("norm x position  rmsnorm to layernorm") < shown.index("pairs resolved") < shown.index("arm  ")
    assert text.index("## Effects") < text.index("## Arms") < text.index("pairs resolved") < text.index("| arm |")
    headline = content(found)["verdict"]["en"]["headline"]
    assert headline == found.said()[0]


def test_comparisons_with_a_named_baseline_stay_behind_the_effects(tmp_path: Path) -> None:
    found = find(read_table([write_study(tmp_path / "s", MIXED)]))
    words = found.verdicts["en"]
    assert words.headline.startswith(words.lost) and words.lost.startswith("3 of 9 arms have diverged runs")
    assert "settings have an effect" in words.headline and words.answer.startswith("No arm beats rmsnorm rope")
    assert {s.kind for s in words.sentences} >= {"resolved", "not resolved"}
