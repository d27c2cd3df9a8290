"""A small version of benchmarks/validity.py: 300 studies a cell, through the report and back from its sentences."""

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ablatio.report.analysis.findings import find

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDIES = 300
CELLS = (
    "null, baseline, 4 arms, 5 seeds",
    "null, one arm varies 3 times, 4 arms, 5 seeds",
    "null, moderated, equal spread, 4 arms, 3 seeds",
    "null, sequential looks, 2 arms, 2 to 8 seeds",
    "margin, superior at its limit, 4 arms",
    "target, flat curve at its limit",
    "coverage, 4 arms, 5 seeds",
    "power, 4 arms, 2 sd, 9 seeds (promised 0.855)",
)


@pytest.fixture
def validity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("validity")


@pytest.mark.parametrize("name", CELLS)
def test_promise(validity: ModuleType, name: str) -> None:
    """Within three standard errors of its limits."""
    cell = next(c for c in validity.all_cells() if c.name == name)
    found = validity.run_cell(cell, STUDIES)
    assert found["trials"] >= STUDIES
    error = 3 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert cell.low - error <= found["share"] <= cell.high + error


def test_the_simulation_sees_a_test_that_claims_too_much(validity: ModuleType) -> None:
    """The same studies without a correction: about three times as many false claims, read from the sentences."""
    cell = next(c for c in validity.all_cells() if c.name == "null, baseline, 8 arms, 3 seeds")
    uncorrected = validity.Cell(cell.name, cell.make, cell.measure, 0.0, 0.06, options={"correction": "none"})
    assert validity.run_cell(uncorrected, 200)["share"] > 0.12


def test_sentences_of_folders_agree_with_scipy_and_statsmodels(validity: ModuleType) -> None:
    assert validity.check_folders(4)["problems"] == []


def test_the_reader_sees_a_wrong_number(validity: ModuleType) -> None:
    """Every printed number of a sentence is checked: a changed digit is a problem."""
    reader = importlib.import_module("_report_reader")
    rows = ["norm,seed,role,state,val/loss"]
    losses = {"base": [3.20, 3.22, 3.19, 3.21], "arm1": [3.10, 3.13, 3.08, 3.12]}
    rows += [f"{arm},{i},run,done,{v}" for arm, of in losses.items() for i, v in enumerate(of)]
    simulated = importlib.import_module("_simulated")
    scores = [list(row) for row in zip(*losses.values(), strict=True)]
    study = simulated.Simulated([3.2, 3.1], np.array(scores), [{"norm": a} for a in losses])
    sentence = "- " + find(simulated.table_of(study, simulated.Asked())).said()[0]
    assert reader.problems(sentence, "\n".join(rows)) == []
    mean = sentence.split(" by ")[1].split(" ")[0]
    for wrong in (sentence.replace(f" {mean} ", " 0.150 "), sentence.replace("n = 4", "n = 5"), "- nothing"):
        assert wrong != sentence and reader.problems(wrong, "\n".join(rows))


def test_documents_are_no_sample_of_a_setting(validity: ModuleType) -> None:
    """Losses by document: as the sample they claim equal settings to differ; weights change nothing; a control variate
    claims effects that are none, or loses those that look like luck."""
    documents = importlib.import_module("validity_documents")
    cells = {cell.name: documents.simulate(cell, 1000, seed=1) for cell in documents.CELLS}
    null, spread = cells["no effect, 5 seeds"], cells["no effect on the mean, sd 0.3 by document, 5 seeds"]
    same, luck = cells["effect of 2, the same for each document, 5 seeds"], cells[documents.CELLS[-1].name]
    assert null["seeds"] < 0.075 and spread["seeds"] < 0.075 and null["documents"] > 0.9 and spread["control"] > 0.4
    assert same["control"] > same["seeds"] > 0.85 and abs(same["weights"] - same["seeds"]) < 0.03
    assert luck["control"] < 0.12 < 0.85 < luck["seeds"]


RECORDED = {
    "validity_effects": lambda module: [cell.name for cell in module.CELLS],
    "validity_scaling": lambda module: [cell.title for cell in module.all_cells()],
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_results_are_of_these_cells_and_keep_their_promises(name: str, validity: ModuleType) -> None:
    """Each share has its standard error and its limits; a cell that is renamed has to be measured anew."""
    module = importlib.import_module(name)
    recorded = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    names = [cell["name"] for cell in recorded["cells"]]
    assert len(names) > 10 and names == [n for n in RECORDED[name](module) if n in names] and recorded["date"]
    for cell in recorded["cells"]:
        assert re.fullmatch("[0-9a-f]{40}", cell["commit"]) and cell["kept"], cell["name"]
        assert cell["studies"] >= 1000 and (cell["seconds"] is None or cell["seconds"] > 0)
        shares = [s for s in (*cell.values(), *cell.get("shares", {}).values()) if isinstance(s, dict) and "share" in s]
        assert shares
        for share in shares:
            error = math.sqrt(share["share"] * (1 - share["share"]) / cell["studies"])
            assert share["standard_error"] == pytest.approx(error, abs=1e-5)
            assert share["low"] <= share["share"] <= share["high"] and share["kept"]
