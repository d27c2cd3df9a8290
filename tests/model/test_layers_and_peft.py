"""PEFT methods on stacks whose layers differ: cached decoding equals full passes, and merging can be undone exactly."""

import itertools
from typing import Any

import pytest
import torch
from helpers.mixed_stacks import STACKS
from torch import Tensor

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.model.builder import ModelBuilder
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.adapters import adapted
from ablatio.model.peft.apply import apply_peft
from ablatio.model.peft.merge import merge
from ablatio.registry.kinds import pefts
from ablatio.registry.registry import REGISTRIES

V, NEW, SIZE = 41, 14, ["model.d_model=32", "model.n_heads=4", "model.n_layers=4", "model.max_len=64"]
CHOSEN = (
    "linear and full", "local and global", "experts, no first attention", "everything", "values of the first layer",
)  # fmt: skip
# Those that need files of trained runs or of another library have tests of their own.
METHODS = [e.name for e in REGISTRIES["peft"] if e.name not in (REGISTRIES["peft"].default, "lorahub", "hf", "qlora")]
REFUSED = ("values of the first layer", "llama_adapter")  # by a rule
CASES = [pair for pair in itertools.product(CHOSEN, METHODS) if pair != REFUSED]
PROMPTS = ([5, 9, 3, 8, 1, 1, 2], [7, 7, 1, 2, 30, 11, 4])


def tuned(stack: str, method: str) -> LanguageModel:
    """A model with a PEFT method, all weights moved off their start."""
    more = ["model.bias=true"] if method == "bitfit" else []  # it trains biases alone
    net: LanguageModel = ModelBuilder(compose_run([*SIZE, *STACKS[stack], *more]).config, V).model()
    apply_peft(net, pefts.build(method, {}), 0)
    net.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += (0.3 if p.requires_grad else 0.05) * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def greedy(net: LanguageModel) -> list[list[int]]:
    """Continuations by the decoder, which keeps keys, values and states in a cache."""
    processors = LogitsProcessors(temperature=0.0)
    job: Any = DecodingJob(net, PROMPTS, Ending(NEW, ()), seed=1)
    return [list(found[0].ids) for found in token_by_token(job, processors, chooser(job, processors))]


@torch.no_grad()
def without_cache(net: LanguageModel) -> list[list[int]]:
    """The most probable tokens of full passes, each over all tokens so far."""
    rows = torch.tensor(PROMPTS)
    for _ in range(NEW):
        rows = torch.cat([rows, net(rows)[:, -1:].argmax(-1)], 1)
    return rows[:, len(PROMPTS[0]) :].tolist()


def logits(net: LanguageModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(torch.tensor(PROMPTS))
    return found


def test_the_pair_that_is_left_out_is_refused() -> None:
    stack, method = REFUSED
    with pytest.raises(ConfigError, match="peft=llama_adapter needs the queries"):
        compose_run([*SIZE, *STACKS[stack], f"peft={method}"])


@pytest.mark.matrix
@pytest.mark.parametrize(("stack", "method"), CASES)
def test_cached_decoding_equals_full_passes(stack: str, method: str) -> None:
    net = tuned(stack, method)
    assert greedy(net) == without_cache(net)


@pytest.mark.matrix
@pytest.mark.parametrize(("stack", "method"), CASES)
def test_merge_and_restore(stack: str, method: str) -> None:
    """Merged logits equal those with adapters; restored, the model is the one before, bit for bit."""
    net = tuned(stack, method)
    before, state = logits(net), {name: t.clone() for name, t in net.state_dict().items()}
    count = len(list(adapted(net)))
    try:
        merged = merge(net)
    except UserError:  # it says that this method cannot be merged, and changes nothing
        assert torch.equal(logits(net), before)
        return
    torch.testing.assert_close(logits(net), before, rtol=1e-9, atol=1e-9)
    merged.restore()
    assert torch.equal(logits(net), before) and len(list(adapted(net))) == count
    now = net.state_dict()
    assert now.keys() == state.keys() and all(torch.equal(now[name], t) for name, t in state.items())
