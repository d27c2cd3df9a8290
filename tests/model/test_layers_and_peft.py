"""PEFT methods on stacks whose layers differ: cached decoding equals full passes, and merging can be undone exactly."""

from typing import Any

import pytest
import torch
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
STACKS = {
    "linear and full": ["layers.attention=[gated_deltanet*3,mha]"],
    "local and global": ["layers.attention=[{sliding*3: {window: 4}},mqa]", "layers.position=[rope*3,none]"],
    "experts, no first attention": ["layers.at.attention={0: none}", "layers.at.mlp={1: moe, -1: moe}"],
    "parts of all kinds": [
        "layers.norm=[layernorm,rmsnorm]", "layers.activation=[gelu,swiglu]", "layers.placement=[pre,sandwich]",
        "layers.block=[parallel,sequential]", "layers.position=[alibi,{rope: {base: 500}},none]",
    ],
    "values of the first layer": ["attention=value_residual", "layers.position=[rope,none]"],
}  # fmt: skip
# Those that need files of trained runs or of another library have tests of their own.
METHODS = [e.name for e in REGISTRIES["peft"] if e.name not in (REGISTRIES["peft"].default, "lorahub", "hf", "qlora")]
PROMPTS = ([5, 9, 3, 8, 1, 1, 2], [7, 7, 1, 2, 30, 11, 4])


def tuned(stack: str, method: str) -> LanguageModel:
    """A model with a PEFT method, all weights moved off their start; skips what the method says it cannot change."""
    if (stack, method) == ("values of the first layer", "llama_adapter"):
        with pytest.raises(ConfigError, match="peft=llama_adapter needs the queries"):
            compose_run([*SIZE, *STACKS[stack], f"peft={method}"])
        pytest.skip("refused by a rule")
    net: LanguageModel = ModelBuilder(compose_run([*SIZE, *STACKS[stack]]).config, V).model()
    try:
        apply_peft(net, pefts.build(method, {}), 0)
    except UserError as error:
        pytest.skip(str(error).splitlines()[0])
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


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stack", STACKS)
def test_cached_decoding_equals_full_passes(stack: str, method: str) -> None:
    net = tuned(stack, method)
    assert greedy(net) == without_cache(net)


@pytest.mark.matrix
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stack", STACKS)
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
