"""Speed of a LoRA step, ours and the library peft's, with the same adapters on the same Llama of transformers.

    python benchmarks/pefts.py [--width 256] [--layers 4] [--tokens 1024] [--turns 15]

A step is forward, loss, backward and AdamW.  Time is the CPU time of the process on one thread; the contenders take
turns (A B A B ...), and the ratio is the median over the turns of peft's / ours.  `full` trains all weights, for
comparison.
"""

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from ablatio.training.device import Machine

Step = Callable[[], float]


def model(width: int, layers: int) -> nn.Module:
    """transformers' Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=1024,
    )  # fmt: skip
    made: nn.Module = LlamaForCausalLM(config)
    return made


def stepper(net: nn.Module, rows: torch.Tensor) -> Step:
    """Make a training step on `rows` (B, T); it returns the loss."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> float:
        loss: torch.Tensor = net(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def contenders(width: int, layers: int, tokens: int, targets: list[str]) -> dict[str, Step]:
    """Make the steps of full fine-tuning, of our LoRA and of peft's, from the same weights."""
    from peft import LoraConfig, inject_adapter_in_model

    from ablatio import pefts

    base = model(width, layers)
    ours, theirs, rows = copy.deepcopy(base), copy.deepcopy(base), torch.randint(1024, (tokens // 128, 128))
    pefts.build("lora", {"targets": tuple(targets)}).apply(ours, 0)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=targets), theirs)
    found = {"full": stepper(base, rows), "ablatio": stepper(ours, rows), "peft": stepper(theirs, rows)}
    for name, net in (("ablatio", ours), ("peft", theirs)):
        trains = sum(p.numel() for p in net.parameters() if p.requires_grad)
        print(f"{name:8} trains {trains:,} of {sum(p.numel() for p in net.parameters()):,}")
    return found


def main() -> None:
    """Measure both sets of targets and print the ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--width", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--turns", type=int, default=15)
    args = options.parse_args()
    warnings.simplefilter("ignore")
    Machine("cpu", "32", 1).prepare(args.width)  # the matrix products of our runs, for all contenders
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for label, targets in (("q_proj, v_proj", ["q_proj", "v_proj"]), ("every linear map", every)):
        print(f"targets: {label}")
        steps = contenders(args.width, args.layers, args.tokens, targets)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses = {name: step() for name, step in steps.items()}
        assert max(losses.values()) - min(losses.values()) < 1e-4, losses  # the same initial model
        for _ in range(args.turns + 1):
            for name, step in steps.items():
                gc.collect()
                start = time.process_time()
                step()
                seconds[name].append(time.process_time() - start)
        for other in ("peft", "full"):
            ratio = statistics.median(a / b for a, b in list(zip(seconds[other], seconds["ablatio"], strict=True))[1:])
            print(f"{other} / ablatio: {ratio:.3f}   ({statistics.median(seconds[other]) * 1e3:.0f} ms a step)")


if __name__ == "__main__":
    main()
