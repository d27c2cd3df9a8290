"""Settings that changed during training, in a report: one curve for each, over the whole run."""

from pathlib import Path

from helpers.studies import POLICIES, write_study

from ablatio.report.analysis.findings import find
from ablatio.report.html.page_data import content
from ablatio.report.html.render import page_text
from ablatio.report.read.table import read_table


def test_scheduled_settings_are_plotted_from_the_first_step(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", POLICIES)
    before = {c["name"] for c in content(find(read_table([folder])))["curves"]}
    changed = sorted(folder.glob("runs/*/metrics.csv"))[0]
    header, *lines = changed.read_text().splitlines()
    window = [64 + int(line.split(",")[0]) for line in lines]
    rows = [f"{line},{value if line.split(',')[2] else ''}" for line, value in zip(lines, window, strict=True)]
    changed.write_text("\n".join([f"{header},setting/attention.window", *rows]) + "\n")
    findings = find(read_table([folder]))
    curves = {c["name"]: c for c in content(findings)["curves"] if not c["difference"]}
    assert set(curves) == before | {"attention.window"} and curves["attention.window"]["setting"]
    assert not curves["train/loss"]["setting"]  # whose axis leaves out the first steps
    (drawn,) = curves["attention.window"]["arms"]  # the other arms have no such setting
    logged = [value for line, value in zip(lines, window, strict=True) if line.split(",")[2]]
    assert (drawn["mean"][0], drawn["mean"][-1]) == (logged[0], logged[-1]) and drawn["mean"] == sorted(drawn["mean"])
    assert '"attention.window"' in page_text(findings)
