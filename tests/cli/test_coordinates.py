"""`ablatio coordinates`: with muP nothing grows with the width, with the plain init it does; whatever the parts are."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ablatio.cli.main import main
from ablatio.config import schema as run_config
from ablatio.registry.kinds import norms
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import compatibility_table, tiny_models
from ablatio.training.mup_check import Growth, at_width, coordinates, slope

SMALL = [
    "model.d_model=64", "model.n_layers=1", "model.n_heads=4", "model.max_len=32", "optimizer.lr=3e-3",
    "--widths", "32,64,128,256", "--steps", "3", "--seeds", "2", "--json",
]  # fmt: skip
OUTPUTS = ["attention", "mlp", "residual stream", "logits"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checked(capsys: pytest.CaptureFixture[str], *settings: str) -> dict:
    assert main(["coordinates", *SMALL, *settings]) == 0
    return json.loads(capsys.readouterr().out)


MUP = ("init=mup", "init.base_width=64", "init.base_head=16")


def test_mup_does_not_grow_and_the_plain_init_does(capsys: pytest.CaptureFixture[str]) -> None:
    """The criterion of the paper's appendix D.1: no slope of log size against log width."""
    flat, plain = checked(capsys, *MUP), checked(capsys, "init=gpt2")
    assert sorted(flat["outputs"]) == sorted(plain["outputs"]) == sorted(OUTPUTS)
    assert flat["transfers"] and not plain["transfers"]
    for name in OUTPUTS:
        assert flat["outputs"][name]["change_slope"] < 0.05 and not flat["outputs"][name]["grows"], name
        assert plain["outputs"][name]["change_slope"] > 0.3, name
        # at the base width the two are one
        assert math.isclose(flat["outputs"][name]["change"][1], plain["outputs"][name]["change"][1], rel_tol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        ("norm=layernorm", "position=t5", "attention=mqa", "activation=geglu", "model.tied=false"),
        ("placement=hyper_connections", "block=macaron", "position=learned"),
        ("placement=post", "block=parallel", "activation=relu"),
        ("architecture=encoder_decoder", "objective=span_corruption", "optimizer=lion", "optimizer.lr=1e-3"),
    ],
    ids=lambda parts: parts[0],
)
def test_mup_holds_with_other_parts(parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(capsys, *MUP, *parts, "--widths", "64,128,256", "--seeds", "4")
    assert found["transfers"], found


def test_the_parts_of_a_plugin_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """plugins/example brings l1norm; a norm that grows with the width is found out."""
    for table in ("entries", "_targets"):
        monkeypatch.setattr(norms, table, dict(getattr(norms, table)))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "plugins" / "example"))
    example = importlib.import_module("ablatio_example.norms")
    if "l1norm" not in norms.entries:  # imported before
        norms.register("l1norm", paper="arXiv:1803.01814")(example.L1Norm)

    class Growing(example.L1Norm):
        """Its output is as long as the model is wide."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * x.shape[-1]

    norms.register("growing", paper="arXiv:0000.00000")(Growing)

    def found(norm: str) -> list[Growth]:
        config = tiny_models.config(max_len=32, n_layers=1, n_heads=4, d_model=64)
        config["norm"] = {"name": norm, **norms[norm].defaults}
        config["init"] = {"name": "mup", "base_width": 64, "base_head": 16, "std": 0.02, "residual_scale": True}
        config["optimizer"]["lr"] = 2e-3
        return coordinates(config, [64, 128, 256], steps=2, seeds=4)

    assert not [g for g in found("l1norm") if g.grows]
    assert all(g.grows for g in found("growing"))


@pytest.mark.parametrize("kind", compatibility_table.paired_kinds())
def test_it_runs_for_every_option(kind: str) -> None:
    for entry in REGISTRIES[kind]:
        config = tiny_models.config(entry, n_layers=1, max_len=12)
        found = coordinates(config, [32, 64], steps=1, seeds=1)
        label = f"{kind}={entry.name}"
        left_out = kind if entry.facts.get("absent") else ""
        assert sorted(g.name for g in found) == sorted(name for name in OUTPUTS if name != left_out), label
        for growth in found:
            assert all(math.isfinite(x) for x in (*growth.start, *growth.change)), f"{label}: {growth}"


def test_slopes_against_numpy() -> None:
    widths, sizes = [32, 64, 128, 512], [0.3, 0.5, 0.2, 1.7]
    assert math.isclose(slope(widths, sizes), np.polyfit(np.log(widths), np.log(sizes), 1)[0])
    assert math.isclose(slope(widths, [7 * w**-0.5 for w in widths]), -0.5)
    assert slope(widths, [0.0] * 4) == 0 and math.isnan(slope(widths, [0.0, 1.0, 1.0, 1.0]))


def test_heads_keep_their_width() -> None:
    wider = at_width(tiny_models.config(d_model=32, n_heads=4, d_ff=48), 96)["model"]
    assert {k: wider[k] for k in ("d_model", "n_heads", "d_head", "d_ff")} == {
        "d_model": 96, "n_heads": 12, "d_head": 8, "d_ff": 144,
    }  # fmt: skip
    assert not run_config.check(at_width(tiny_models.config(), 64))


def test_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    coordinates(tiny_models.config(n_layers=1, max_len=8, dropout=0.1), [32, 64], steps=1, seeds=1)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--widths", "64"], "expected two or more positive integers"),
        (["--widths", "64,x"], "--widths 64,128"),
        (["--widths", "48,64"], "widths must be multiples of 32"),
        (["--steps", "0"], "--steps 4"),
        (["init=mup", "optimizer=sgd"], "optimizer=adamw"),
        (["norm=rms"], "rmsnorm"),
    ],
)
def test_what_cannot_be_checked(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinates", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_text_may_come_from_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With another vocabulary the logits at the start are others; still nothing grows."""
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Line {i}: {i * i} is a square, {i * i + 1} is none." for i in range(400)))
    text = ("tokenizer=bytes", "source=text", f"source.path={book}", "source.separator='\\n\\n'")
    found = checked(capsys, *MUP, *text, "--corpus", "--widths", "64,128,256", "--seeds", "4")
    assert found["transfers"], found
    assert found != checked(capsys, *MUP, *text, "--widths", "64,128,256", "--seeds", "4")


def test_the_table_says_what_grows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinates", *SMALL[:-1], "--widths", "32,64", "--seeds", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "attention" in out and "grow with the width: a learning rate found at one width is wrong" in out
