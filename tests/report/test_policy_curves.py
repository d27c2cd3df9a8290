"""Policy runs in a report: curves of reward, KL and entropy, and a note on collapsed runs."""

from pathlib import Path

from helpers.studies import POLICIES, write_study

from ablatio.report.analysis.findings import find
from ablatio.report.html.page_data import content
from ablatio.report.html.render import page_text
from ablatio.report.read.table import read_table


def add_policy_metrics(path: Path, collapsed_from: int | None) -> None:
    header, *lines = path.read_text().splitlines()
    made = [f"{header},train/reward,train/kl_k3,train/entropy,train/collapsed"]
    for line in lines:
        at = int(line.split(",")[0])
        is_collapsed = collapsed_from is not None and at >= collapsed_from
        made.append(f"{line},{at / 100},{at / 1000},{3.0 - at / 1000},{float(is_collapsed)}")
    path.write_text("\n".join(made) + "\n")


def test_policy_metrics_are_plotted_and_collapse_is_noted(tmp_path: Path):
    folder = write_study(tmp_path / "s", POLICIES)
    plain = content(find(read_table([folder])))
    assert not any("collapsed" in note["en"] for note in plain["notes"])
    before = {c["name"] for c in plain["curves"]}
    assert not before & {"train/reward", "train/kl_k3", "train/entropy"}
    paths = sorted(folder.glob("runs/*/metrics.csv"))
    steps = [int(line.split(",")[0]) for line in paths[0].read_text().splitlines()[1:]]
    for number, path in enumerate(paths):
        add_policy_metrics(path, steps[len(steps) // 2] if number == 0 else None)
    findings = find(read_table([folder]))
    found = content(findings)
    curves = {c["name"]: c for c in found["curves"] if not c["difference"]}
    assert set(curves) == before | {"train/reward", "train/kl_k3", "train/entropy"}
    rising = curves["train/reward"]["arms"][0]["mean"]
    assert rising == sorted(rising) and rising[-1] > rising[0]
    collapse_notes = [note["en"] for note in found["notes"] if "collapsed" in note["en"]]
    (note,) = collapse_notes
    assert f"first seen at step {steps[len(steps) // 2]}" in note and "1 of 3 runs" in note
    assert note in page_text(findings)
