"""Reward against KL: which arms make a line, in which order, and what each point is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from studies import ACTIVATIONS, POLICIES, policy_scores, write_study

from ablatio.report.arms import Arm
from ablatio.report.findings import find
from ablatio.report.frontier import frontier, series
from ablatio.report.table import read_table


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
