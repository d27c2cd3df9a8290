"""Reward against KL: how arms are grouped into lines, their order, and the meaning of each point."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.studies import ACTIVATIONS, POLICIES, RATES, policy_scores, write_study

from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.findings import find
from ablatio.report.analysis.reward_kl_frontier import _at, frontier, in_words, series
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table


def test_frontier_has_one_line_per_method_ordered_by_kl(tmp_path: Path):
    """Compared with the run summaries: points are runs, arm means are over seeds, a path ends at its arm's mean."""
    folder = write_study(tmp_path / "s", POLICIES)
    findings = find(read_table([folder]))
    found = frontier(findings)
    assert found and found["gold"] and sorted(line["name"] for line in found["lines"]) == ["grpo", "ppo"]
    scores = {}
    for path in folder.glob("jobs/*.json"):
        job = json.loads(path.read_text())
        run_summary = json.loads((folder / "runs" / job["id"] / "summary.json").read_text())
        scores.setdefault(tuple(job["arm"].values()), []).append(
            [run_summary[f"val/{n}"] for n in ("kl", "reward", "gold")]
        )
    for line in found["lines"]:
        labels = [findings.rows[a["arm"]].arm.settings["alignment.beta"] for a in line["arms"]]
        assert labels == ["1", "0.1", "0.01"]  # a smaller KL penalty allows a larger KL
        for beta, arm in zip(labels, line["arms"], strict=True):
            assert sorted(arm["points"]) == sorted(scores[line["name"], beta])
            assert arm["mean"] == pytest.approx([sum(column) / 3 for column in zip(*arm["points"], strict=True)])
            assert arm["path"][0] == pytest.approx([0.0, *list(policy_scores(0.0).values())[1:]])
            assert arm["path"][-1] == pytest.approx(arm["mean"], rel=1e-6) and len(arm["path"]) > 10


def test_methods_are_compared_at_equal_kl(tmp_path: Path):
    """In the synthetic study the gold reward depends on the KL only, so all methods must agree at equal KL."""
    found = frontier(find(read_table([write_study(tmp_path / "s", POLICIES)])))
    assert found and found["equal"]
    ends = {line["name"]: min(p[0] for p in line["arms"][-1]["points"]) for line in found["lines"]}
    assert found["equal"]["kl"] == min(ends.values())
    expected = policy_scores(found["equal"]["kl"])["val/gold"]
    for name, mean, sd, seeds in found["equal"]["methods"]:
        assert name in ends and seeds == 3 and sd is not None
        assert mean == pytest.approx(expected, abs=0.06)  # interpolation error: the true curve is not straight


def test_report_summarizes_frontier_in_words(tmp_path: Path):
    findings = find(read_table([write_study(tmp_path / "s", POLICIES)]))
    made = frontier(findings)
    assert made
    name, mean, _, _ = made["equal"]["methods"][0]
    assert f"reach, gold: {name} {mean:.2f} ± " in in_words(made)
    assert "## Reward against KL" in markdown_text(findings) and in_words(None) == ""
    assert "KL" not in markdown_text(find(read_table([write_study(tmp_path / "t", RATES)])))


def test_gold_is_interpolated_linearly_in_sqrt_kl():
    assert _at(4.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) == pytest.approx(0.4)  # sqrt(KL) = 1, 2, 3
    assert _at(1.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) == 0.2 and _at(4.0, [[4.0, 0.0, 0.7]]) == 0.7
    assert _at(0.5, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) is None
    assert _at(10.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) is None


def test_studies_without_kl_or_with_one_arm_have_no_frontier(tmp_path: Path):
    assert frontier(find(read_table([write_study(tmp_path / "s", ACTIVATIONS)]))) is None
    one = replace(POLICIES, axes={"alignment": ["ppo"], "alignment.beta": ["1"]})
    assert frontier(find(read_table([write_study(tmp_path / "one", one)]))) is None


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"alignment": "ppo", "alignment.kl_coef": "0.1"}, "ppo"),
        ({"stages.policy.alignment": "ppo", "stages.policy.alignment.kl_coef": "1e-2"}, "ppo"),
        ({"stages.policy.alignment.best_of": "4", "stages.reward.source.size": "100"}, "size=100"),
        ({"alignment.kl_target": "null"}, "alignment"),
    ],
)
def test_numeric_settings_do_not_split_a_method(settings: dict[str, str], name: str):
    assert series(Arm("", "", settings, [])) == name
