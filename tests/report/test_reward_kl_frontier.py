"""Reward against KL: which arms make a line, in which order, and what each point is."""

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


def test_a_line_is_a_method_and_goes_from_near_to_far(tmp_path: Path):
    """Against the summaries themselves: points are runs, the mean is over seeds, the path ends there."""
    folder = write_study(tmp_path / "s", POLICIES)
    findings = find(read_table([folder]))
    found = frontier(findings)
    assert found and found["gold"] and sorted(line["name"] for line in found["lines"]) == ["grpo", "ppo"]
    scores = {}
    for path in folder.glob("jobs/*.json"):
        job = json.loads(path.read_text())
        told = json.loads((folder / "runs" / job["id"] / "summary.json").read_text())
        scores.setdefault(tuple(job["arm"].values()), []).append([told[f"val/{n}"] for n in ("kl", "reward", "gold")])
    for line in found["lines"]:
        labels = [findings.rows[a["arm"]].arm.settings["alignment.beta"] for a in line["arms"]]
        assert labels == ["1", "0.1", "0.01"]  # a weaker price, a longer way
        for beta, arm in zip(labels, line["arms"], strict=True):
            assert sorted(arm["points"]) == sorted(scores[line["name"], beta])
            assert arm["mean"] == pytest.approx([sum(column) / 3 for column in zip(*arm["points"], strict=True)])
            assert arm["path"][0] == pytest.approx([0.0, *list(policy_scores(0.0).values())[1:]])
            assert arm["path"][-1] == pytest.approx(arm["mean"], rel=1e-6) and len(arm["path"]) > 10


def test_methods_are_compared_at_one_distance(tmp_path: Path):
    """The gold of the made-up policies is a function of the KL alone: at one KL all methods have the same."""
    found = frontier(find(read_table([write_study(tmp_path / "s", POLICIES)])))
    assert found and found["equal"]
    ends = {line["name"]: min(p[0] for p in line["arms"][-1]["points"]) for line in found["lines"]}
    assert found["equal"]["kl"] == min(ends.values())
    expected = policy_scores(found["equal"]["kl"])["val/gold"]
    for name, mean, sd, seeds in found["equal"]["methods"]:
        assert name in ends and seeds == 3 and sd is not None
        assert mean == pytest.approx(expected, abs=0.06)  # between its points the curve is bent


def test_the_report_says_it_in_words(tmp_path: Path):
    findings = find(read_table([write_study(tmp_path / "s", POLICIES)]))
    made = frontier(findings)
    assert made
    name, mean, _, _ = made["equal"]["methods"][0]
    assert f"reach, gold: {name} {mean:.2f} ± " in in_words(made)
    assert "## Reward against KL" in markdown_text(findings) and in_words(None) == ""
    assert "KL" not in markdown_text(find(read_table([write_study(tmp_path / "t", RATES)])))


def test_between_two_points_the_gold_is_straight_in_the_root():
    assert _at(4.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) == pytest.approx(0.4)  # roots 1, 2, 3
    assert _at(1.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) == 0.2 and _at(4.0, [[4.0, 0.0, 0.7]]) == 0.7
    assert _at(0.5, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) is None
    assert _at(10.0, [[1.0, 9.0, 0.2], [9.0, 9.0, 0.6]]) is None


def test_a_study_of_losses_has_none(tmp_path: Path):
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
def test_numbers_of_the_method_are_places_on_its_line(settings: dict[str, str], name: str):
    assert series(Arm("", "", settings, [])) == name
