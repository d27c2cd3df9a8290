"""What a config weighs, before it is made: on the meta device, and against the memory of this machine."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ablatio.data.chat import with_special_tokens
from ablatio.data.types import Tokenizer
from ablatio.errors import EnvironmentFault
from ablatio.model.build import PartChoice
from ablatio.model.cost.flops import cost_of
from ablatio.model.cost.memory import WIDTH, MemoryEstimate, memory_of
from ablatio.model.cost.parameters import measure, parameters
from ablatio.model.peft.apply import is_tuned, tune
from ablatio.registry import kinds
from ablatio.training.device import Machine

CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def estimate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, FLOPs per token and bytes; `machine`: the memory of the device that would train."""
    vocabulary = vocabulary_of(config)
    size, memory = measure(config, vocabulary), _memory(config, vocabulary)
    length = int(config["data"]["length"] or config["model"]["max_len"])
    cost = cost_of(config, vocabulary)
    counts = {"non_embedding": size.non_embedding, "train_flops_per_token": cost.train}
    return asdict(size) | counts | asdict(memory) | {"length": length, "machine": memory_here(config["trainer"])}


def _memory(config: Mapping[str, Any], vocabulary: int) -> MemoryEstimate:
    """With the weights that train alone, and with a reference where the task or its method holds one."""
    copies = int(kinds.tasks[config["task"]["name"]].facts["copies"])
    method = (config.get("alignment") or {}).get("name")
    copies += method is not None and bool(kinds.alignments[method].facts["moves_reference"])
    try:
        return memory_of(config, vocabulary, (lambda m: tune(m, config, 0)) if is_tuned(config) else None, copies)
    except Exception:  # a method may ask for the numbers in its tensors, which shapes do not have
        return memory_of(config, vocabulary, None, copies)


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """The ids of the tokenizer and of a template's signs; it need not be trained for that."""
    return int(untrained_tokenizer(config).vocab_size)


def untrained_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer with a template's signs, before it has read a text: its ids are the same as after."""
    choice = PartChoice.of(config["tokenizer"])
    tokenizer: Tokenizer = kinds.tokenizers.build(choice.name, choice.knobs)
    if kinds.tasks[config["task"]["name"]].facts["template"]:
        form = PartChoice.of(config["template"])
        tokenizer = with_special_tokens(tokenizer, kinds.templates.build(form.name, form.knobs))
    return tokenizer


def memory_here(trainer: Mapping[str, Any]) -> int:
    """Bytes of the GPU, or those that this process may have of the machine."""
    if Machine.choose(trainer).device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [
        int(text) for path in map(Path, CGROUP) if path.exists() and (text := path.read_text().strip()).isdigit()
    ]
    return min(limits)


def check_memory(config: Mapping[str, Any]) -> None:
    """EnvironmentFault when what training holds from the first step to the last is more than the machine has."""
    room, vocabulary = memory_here(config["trainer"]), vocabulary_of(config)
    count = parameters(config, vocabulary)
    if 16 * WIDTH * count < room:  # far from it: the exact figure takes a second
        return
    memory = _memory(config, vocabulary)
    if memory.lasting > room:
        held = "weights, a reference" if memory.beside else "weights"
        raise EnvironmentFault(
            f"this model has {count:,} parameters: {held}, gradients and the "
            f"optimizer's state take {memory.lasting / 1e9:,.1f} GB, and this machine has {room / 1e9:,.1f} GB\n"
            "    try: size=small"
        )
