"""What one arm weighs: parameters, FLOPs of the whole training, seconds of a step; Lightning is not needed for that."""

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

PROBE_FLOPS = 5e10  # of a timed step: half a second on one core; a larger batch is timed on some of its rows
PROBE_PARAMETERS = 100_000_000


def parameters(config: Mapping[str, Any]) -> int:
    """Each counted once; nothing is allocated."""
    from ablatio.model.cost.parameters import parameters

    return parameters(config, _vocabulary(config))


def trainable(config: Mapping[str, Any]) -> int:
    """The parameters that the optimizer gets; nothing is allocated."""
    from ablatio.model.cost.parameters import shape_of

    return _trainable(shape_of(config))


def train_flops(config: Mapping[str, Any]) -> float:
    """Of all steps, forward and backward."""
    return _flops_per_token(config) * _tokens(config) * int(config["train"]["steps"])


def _vocabulary(config: Mapping[str, Any]) -> int:
    """The ids of the tokenizer; it need not be trained for that."""
    from ablatio.model.build import PartChoice
    from ablatio.registry import kinds

    choice = PartChoice.of(config["tokenizer"])
    return int(kinds.tokenizers.build(choice.name, choice.knobs).vocab_size)


def _tokens(config: Mapping[str, Any]) -> int:
    """Of one step."""
    length = int(config["data"]["length"] or config["model"]["max_len"])
    return int(config["train"]["batch_size"] * config["train"]["accumulate"]) * length


@functools.lru_cache(4096)
def _trainable(shape: str) -> int:
    import torch

    from ablatio.model.build import ModelBuilder
    from ablatio.model.peft.apply import tune

    config = json.loads(shape)
    with torch.device("meta"):
        return tune(ModelBuilder(config, _vocabulary(config)).model(), config, 0).trainable


def _flops_per_token(config: Mapping[str, Any]) -> float:
    from ablatio.model.cost.flops import cost_of

    return cost_of(config, _vocabulary(config)).train


def seconds_per_step(config: Mapping[str, Any], times: int = 3) -> float:
    """The least of some timed steps on random tokens, on as many threads as a run has; 0 for a model too large to try.

    Of a large batch some rows are timed: cost per token x tokens.
    """
    import torch

    from ablatio.training.device import Machine

    size = parameters(config)
    length, rows = int(config["data"]["length"] or config["model"]["max_len"]), int(config["train"]["batch_size"])
    row_flops = _flops_per_token(config) * length
    if size > PROBE_PARAMETERS or row_flops > 20 * PROBE_FLOPS:
        return 0.0
    few = max(1, min(rows, int(PROBE_FLOPS / row_flops)))
    threads = torch.get_num_threads()
    Machine("cpu", "32", config["trainer"]["threads"] or 1).prepare(int(config["model"]["d_model"]))
    try:
        with torch.random.fork_rng(devices=[]):
            forward, step = _probe(config, few, length)
            passes, updates = [], []
            for _ in range(times + 1):  # the first warms up
                start = time.perf_counter()
                forward()
                middle = time.perf_counter()
                step()
                passes.append(middle - start)
                updates.append(time.perf_counter() - middle)
    finally:
        torch.set_num_threads(threads)
    batches = rows / few * int(config["train"]["accumulate"])
    return min(passes[1:]) * batches + min(updates[1:])


def _probe(config: Mapping[str, Any], rows: int, length: int) -> tuple[Any, Any]:
    """(a pass forward and backward, an update of the weights), to be timed."""
    import torch

    from ablatio.model.build import PartChoice, build_model
    from ablatio.model.parameter_roles import groups_by_role, named_generator
    from ablatio.registry import kinds

    vocabulary = _vocabulary(config)
    model = build_model(config, vocabulary, 0, 0)
    choice, asked = PartChoice.of(config["optimizer"]), PartChoice.of(config["objective"])
    optimizer = kinds.optimizers.build(choice.name, choice.knobs, groups=groups_by_role(model))
    objective = kinds.objectives.build(asked.name, asked.knobs, vocab_size=vocabulary, eos=0, max_len=length)
    tokens = torch.randint(1, vocabulary, (rows, length + 1), generator=named_generator(0, "probe"))
    example = objective(tokens, None, named_generator(0, "objective"))

    def forward() -> None:
        total, _, _ = model.loss(example)
        (total / tokens.numel()).backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return forward, step
