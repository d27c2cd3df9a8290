"""Runs with PEFT and quantized base models on the command line: resume, export, foreign adapters, loss increase."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio import pefts
from ablatio.errors import DamagedFile, UserError
from ablatio.model.peft.adapter_files import load_adapter, save_adapter
from ablatio.testing import tiny_models

WIDE = ("model.n_layers=2", "train.steps=8", "train.checkpoint_every=4", "train.val_every=null")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("dylora", "prefix", "qlora", "hf")]


@pytest.mark.matrix
@pytest.mark.parametrize("peft", ["adalora", *SLOW])
def test_peft_run_resumes_bit_for_bit(tmp_path: Path, text_file: Path, peft: str) -> None:
    settings = [*TINY, *WIDE, f"source.path={text_file}", f"out={tmp_path}", f"peft={peft}"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = cut_and_resumed(settings, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")
    result: dict[str, Any] = summary(cut)
    assert result["trainable_parameters"] > 0 and 0 < result["weight_bytes"] < result["peak_memory_bytes"]


@pytest.fixture
def base(tmp_path: Path, text_file: Path) -> list[str]:
    settings = ["train", *TINY, *WIDE, f"source.path={text_file}", f"out={tmp_path}"]
    assert ablatio([*settings, "name=base"], tmp_path / "log").code == 0
    return [*settings, "model.start=run", f"model.path={tmp_path / 'base'}"]


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about its use by peft
@pytest.mark.parametrize("peft", ["lora", "dora", "qlora"])
def test_peft_library_loads_exported_adapter(tmp_path: Path, base: list[str], peft: str) -> None:
    """Base and adapter loaded by transformers and peft, and the merged export, give the logits of the run."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ablatio.training.load import load_run

    run, to, adapter = tmp_path / peft, tmp_path / "plain", tmp_path / "adapter"
    tuned = ablatio([*base, f"name={peft}", f"peft={peft}", "optimizer.lr=0.05"], tmp_path / "log")
    assert tuned.code == 0, tuned.err
    ended = ablatio(["export", str(run), "--to", str(to), "--adapter", str(adapter)], tmp_path / "log")
    assert ended.code == 0, ended.err
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32), adapter).eval()
    rows = torch.randint(1, 250, (2, 12))
    model = load_run(run)[0].model
    with torch.no_grad():
        wanted, found = model(rows), both(rows).logits
        plain = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()(rows).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (plain - wanted).abs().max() > 1e-3
    merged = ablatio(["export", str(run), "--to", str(tmp_path / "merged")], tmp_path / "log")
    assert merged.code == 0, merged.err
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(rows).logits, wanted, rtol=1e-4, atol=1e-4)


def test_unmergeable_adapter_suggests_adapter_export(tmp_path: Path, base: list[str]) -> None:
    assert ablatio([*base, "name=prefix", "peft=prefix"], tmp_path / "log").code == 0
    refused = ablatio(["export", str(tmp_path / "prefix"), "--to", str(tmp_path / "out")], tmp_path / "log")
    assert refused.code == 2 and "--adapter DIR" in refused.err
    kept = ablatio(["export", str(tmp_path / "prefix"), "--adapter", str(tmp_path / "kept")], tmp_path / "log")
    assert kept.code == 0 and {p.name for p in (tmp_path / "kept").iterdir()} == {"adapter.json", "adapter.safetensors"}
    refused = ablatio(["export", str(tmp_path / "base"), "--adapter", str(tmp_path / "no")], tmp_path / "log")
    assert refused.code == 2 and "has no adapter" in refused.err


@pytest.mark.parametrize("peft", [("peft=lora",), ("peft=hf", "peft.method=randlora")], ids=["lora", "hf"])
def test_next_stage_starts_from_merged_weights(tmp_path: Path, base: list[str], peft: tuple[str, ...]) -> None:
    """A run that starts from a LoRA run (our layers or peft's) starts with that run's final loss."""
    assert ablatio([*base, "name=lora", *peft, "optimizer.lr=0.05"], tmp_path / "log").code == 0
    on = ablatio([*base[:-1], f"model.path={tmp_path / 'lora'}", "name=next"], tmp_path / "log")
    assert on.code == 0, on.err
    first: Any = summary(tmp_path / "lora")
    second: Any = summary(tmp_path / "next")
    assert (
        abs(second["before"]["loss"] - first["after"]["loss"]) < 1e-4 < first["before"]["loss"] - first["after"]["loss"]
    )


def test_post_training_quantization_cost_and_qat(tmp_path: Path, base: list[str]) -> None:
    costs = {}
    for name in ("int8", "int4"):
        evaluated = ablatio(["evaluate", str(tmp_path / "base"), "--quantization", name, "--json"], tmp_path / "log")
        assert evaluated.code == 0, evaluated.err
        plain, coded = json.loads(evaluated.out)["scores"]
        assert coded["cost"] == pytest.approx(coded["loss"] - plain["loss"]) and "cost" not in plain
        costs[name] = abs(coded["cost"])
    assert costs["int8"] < costs["int4"] < 0.5
    aware = ablatio([*base, "name=aware", "quantization=int4", "quantization.qat=true"], tmp_path / "log")
    assert aware.code == 0, aware.err
    refused = ablatio(["train", *TINY, "peft=qlora", "quantization=int8"], tmp_path / "log")
    assert refused.code == 2 and "quantization=none" in refused.err


def test_unmatched_peft_targets_list_available_layers(tmp_path: Path, base: list[str]) -> None:
    refused = ablatio([*base, "name=no", "peft=lora", "peft.targets=[query]"], tmp_path / "log")
    assert refused.code == 2 and "q_proj (2)" in refused.err and "peft.targets=[q_proj]" in refused.err


def test_adapter_of_another_base_model_is_rejected(tmp_path: Path) -> None:
    choice = {"name": "lora", **pefts["lora"].defaults}
    nets = [tiny_models.model(seed=seed) for seed in (0, 0, 1)]
    for seed, net in enumerate(nets):
        pefts.build("lora").apply(net, seed)
    save_adapter(tmp_path / "kept", nets[0], choice)
    load_adapter(tmp_path / "kept", nets[1])
    for (name, a), b in zip(nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(UserError, match="another base model"):
        load_adapter(tmp_path / "kept", nets[2])
    smaller = tiny_models.model(seed=0)
    pefts.build("lora", {"rank": 2}).apply(smaller, 0)
    with pytest.raises(UserError, match="settings that differ"):
        load_adapter(tmp_path / "kept", smaller)
    with pytest.raises(UserError, match="is not an adapter folder"):
        load_adapter(tmp_path, nets[1])
    data = bytearray((tmp_path / "kept/adapter.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "kept/adapter.safetensors").write_bytes(data)
    with pytest.raises(DamagedFile):
        load_adapter(tmp_path / "kept", nets[1])
