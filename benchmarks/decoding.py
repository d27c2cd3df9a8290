"""Decoding, ours against transformers' `generate` on the same weights: tokens per CPU second, in turns A B A B.

    python benchmarks/decoding.py [--width 256] [--turns 7] [--json benchmarks/results/decoding.json]

A ratio is the median over the turns of theirs / ours in CPU time of one thread; above 1, ours is faster.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablatio import decodes
from ablatio.config import schema
from ablatio.config.kind_lists import usual_parts
from ablatio.interop.families import family_of
from ablatio.model.build import build_model
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.registry.registry import REGISTRIES

VOCABULARY = 4096


@dataclass(frozen=True)
class Case:
    """A decode part with its settings, and those of `generate` that mean the same."""

    name: str
    knobs: dict[str, Any]
    theirs: dict[str, Any]
    second: bool = False
    rows: int = 8


CASES = (
    Case("greedy", {}, {"do_sample": False}),
    Case("greedy", {}, {"do_sample": False}, rows=1),
    Case(
        "sample",
        {"temperature": 0.8, "top_p": 0.95},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
    ),
    Case("beam", {"width": 4}, {"num_beams": 4, "do_sample": False}),
    Case("speculative", {"temperature": 0.0, "draft": 4}, {"do_sample": False, "num_assistant_tokens": 4}, True, 1),
)


def models(width: int, layers: int, seed: int) -> tuple[Any, Any]:
    """A model of ours and transformers' Llama with its weights."""
    import transformers

    config = schema.defaults()
    config["model"] |= {"d_model": width, "n_layers": layers, "n_heads": max(2, width // 64), "max_len": 512}
    for kind, name in usual_parts().items():
        config[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    ours = build_model(config, VOCABULARY, seed=seed).eval()
    family = family_of(config, VOCABULARY, 0)
    assert family is not None
    settings = {k: v for k, v in family.config_json().items() if k != "architectures"}
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings)).eval()
    theirs.load_state_dict(family.to_native(ours.state_dict()), strict=False)
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        row = torch.arange(1, 33)[None]
        assert float((ours(row) - theirs(row).logits).abs().max()) < 1e-3, "the models differ"
    return ours, theirs


def contenders(case: Case, width: int, layers: int, new: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours and theirs: functions that continue the same prompts by `new` tokens and return the token ids."""
    ours, theirs = models(width, layers, 0)
    small, their_small = models(width // 4, 1, 1) if case.second else (None, None)
    prompts = torch.randint(1, VOCABULARY - 1, (case.rows, 64), generator=torch.Generator().manual_seed(0))
    part = decodes.build(case.name, case.knobs)
    job = DecodingJob(ours, prompts.tolist(), Ending(new), second=small)
    more = {"assistant_model": their_small} if case.second else {}

    def own() -> Any:
        with torch.no_grad():
            return [found[0].ids for found in part(job)]

    def their() -> Any:
        mask = torch.ones_like(prompts)
        found = theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **case.theirs, **more
        )
        return found[:, 64:].tolist()

    return own, their


def compare(case: Case, width: int, layers: int, new: int, turns: int) -> dict[str, Any]:
    """Measure in turns; greedy texts must be equal."""
    both = contenders(case, width, layers, new)
    first = [step() for step in both]
    if not case.theirs["do_sample"]:
        assert first[0] == first[1], f"{case.name}: the texts differ"
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for step, taken in zip(both, seconds, strict=True):
            start = time.process_time()
            step()
            taken.append(time.process_time() - start)
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    tokens = case.rows * new
    return {
        "decode": case.name, "rows": case.rows, "width": width, "layers": layers, "new_tokens": new, "turns": turns,
        "ours_tokens_per_second": tokens / statistics.median(seconds[0]),
        "theirs_tokens_per_second": tokens / statistics.median(seconds[1]),
        "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1],
    }  # fmt: skip


def main() -> None:
    """Print a line for each case; write them as JSON if asked."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--new", type=int, default=64)
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        row = compare(case, args.width, args.layers, args.new, args.turns)
        rows.append(row)
        print(
            f"{row['decode']:<12} {row['rows']} rows: ours {row['ours_tokens_per_second']:8.0f} tokens/s, "
            f"transformers {row['theirs_tokens_per_second']:8.0f}, ratio {row['ratio']:.2f} "
            f"({row['least']:.2f} to {row['most']:.2f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
