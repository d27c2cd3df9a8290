"""Speed of alignment on the CPU: generation of ours and of transformers, the same Llama with the same weights.

    python benchmarks/alignment.py [--repeats 7] [--batch 8] [--prompt 32] [--new 96]

The contenders take turns (A B A B ...) in one process on one thread; time is the CPU time of the process, a ratio the
median over the turns of theirs / ours.  Work is identical: prompts of one length, sampling at temperature 1 from the
whole vocabulary, as many new tokens for each row, no early end; the log-probability of each token comes along on both
sides, as a policy method needs it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ablatio.model.rollout import roll_out, streams
from ablatio.native.decoders import Llama
from ablatio.registry import REGISTRIES

PARTS = {
    "norm": "rmsnorm", "activation": "swiglu", "position": "rope", "placement": "pre", "mlp": "dense",
    "attention": "mha", "block": "sequential", "architecture": "causal", "init": "gpt2",
    "objective": "lm",
}  # fmt: skip


def models(vocab: int, d_model: int, layers: int) -> tuple[Any, Any]:
    """(ours, transformers' Llama) with one set of weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ablatio import config as run_config
    from ablatio.model.assembly import build_model

    config = run_config.defaults()
    config["model"] |= {"d_model": d_model, "n_layers": layers, "n_heads": 4, "max_len": 512}
    for kind, name in PARTS.items():
        config[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    ours, family = build_model(config, vocab).eval(), Llama(config, vocab)
    theirs = LlamaForCausalLM(LlamaConfig(**family.config_json())).eval()
    theirs.load_state_dict(family.to_native(ours.state_dict()), strict=False)
    row = torch.arange(1, 33)[None]
    with torch.no_grad():
        gap = float((ours(row) - theirs(row).logits).abs().max())
    assert gap < 1e-3, f"the two are not one model: logits differ by {gap}"
    return ours, theirs


def timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 7), ("batch", 8), ("prompt", 32), ("new", 96), ("width", 64), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = models(2048, args.width, args.layers)
    prompts = torch.randint(1, 2048, (args.batch, args.prompt), generator=torch.Generator().manual_seed(0))
    single = prompts[:1].expand(args.batch, -1)
    setting = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    scores = {"return_dict_in_generate": True, "output_scores": True}

    def own(rows: list[list[int]], group: int) -> Any:
        draws = streams(1, 0, len(rows) * group, args.new)
        return roll_out(ours, rows, draws, stop=None, new_tokens=args.new, group=group)

    def peer(rows: torch.Tensor) -> Any:
        with torch.no_grad():
            found = theirs.generate(rows, attention_mask=torch.ones_like(rows), **setting, **scores)
            logps = torch.stack(found.scores, 1).log_softmax(-1)
            return logps.gather(2, found.sequences[:, args.prompt :, None])

    work = {
        f"{args.batch} prompts": (lambda: own(prompts.tolist(), 1), lambda: peer(prompts)),
        f"{args.batch} answers to one prompt": (lambda: own(prompts[:1].tolist(), args.batch), lambda: peer(single)),
    }
    table = Table("generation", "ours, tokens/s", "transformers, tokens/s", "ratio", title="one thread, CPU time")
    for label, contenders in work.items():
        for contender in contenders:
            contender()
        times = [[timed(contender) for contender in contenders] for _ in range(args.repeats)]
        speeds = [args.batch * args.new / statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(b / a for a, b in times)
        table.add_row(label, *(f"{s:,.0f}" for s in speeds), f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
