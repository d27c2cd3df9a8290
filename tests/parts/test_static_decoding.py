"""Which parts decode by static steps: the same operations for each token, and the logits of a growing cache.

A part that is refused keeps the growing cache; REFUSED says why.  A new part needs no entry if its steps are static.
"""

from typing import Any

import pytest
import torch

from ablatio.model.build import build_model
from ablatio.model.decoding import token_steps
from ablatio.model.decoding.operations import Operations
from ablatio.model.decoding.token_steps import TokenSteps
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import Encoder, LanguageModel
from ablatio.model.on_meta import meta_copy
from ablatio.model.static_cache import NotStaticError, StaticCache
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts, tiny_models
from ablatio.testing.checks import Unreplayed
from ablatio.testing.device_waits import WaitsForDevice, meta_as_gpu

PROMPT, ROOM, ROWS = 8, 40, 3
RECORDED = (3, 4, 20)  # tokens whose operations are compared
COUNTED, GROWS, READS = "number of cached tokens", "changes its shape", "reads values"
REFUSED: dict[str, str] = {
    "attention=dcmha": GROWS,  # what mixes the heads of a key, one more with each token
    "attention=forgetting": GROWS,  # the forget gates of all tokens
    "attention=lambda_window": COUNTED,  # where a text's first tokens stand
    "attention=moba": "number of keys",  # how many blocks the keys make
    "attention=nsa": "number of keys",
    "attention=titans": f"({COUNTED}|{READS})",  # tokens of a mini-batch that is not complete
    "attention=ttt": f"({COUNTED}|{READS})",
    "mlp=deepseek_moe": READS,  # how many tokens each expert has; not so on a GPU in bfloat16
    "mlp=moe": READS,
    "mlp=mixture_of_depths": READS,  # which tokens go through the layer
    "architecture=retro": f"({COUNTED}|{READS})",  # whether a chunk has ended, which is then looked up
    "settings=longrope": "copied from the host",  # factors of the pairs
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # attention, then knobs of it and, by kind, of other parts
    "dynamic": ("mha", {"position": {"name": "rope", "scaling": "dynamic", "original_max_len": 16}}),
    "longrope": ("gqa", {"position": {"name": "rope", "scaling": "longrope", "original_max_len": 16}}),
    "half": ("mha", {"position": {"name": "rope", "fraction": 0.5, "layout": "half", "skip_every": 2}}),
    "refined": ("gqa", {"softcap": 5.0, "sinks": True, "ssmax": True, "key_offset": 0.5, "exclusive": "full"}),
    "cosines": ("mha", {"qk_norm": "l2", "v_norm": "rmsnorm", "position": {"name": "alibi"}}),
    "window": ("sliding", {"window": 5, "full_every": 2, "position": {"name": "t5"}}),
    "wide window": ("sliding", {"window": 100, "position": {"name": "cope"}}),
    "prefix": ("mha", {"architecture": {"name": "prefix"}}),
    "both": ("gqa", {"architecture": {"name": "encoder_decoder"}, "position": {"name": "learned"}}),
}
PARTS = [
    f"{registry.kind}={entry.name}"
    for registry in REGISTRIES.values()
    if registry.scope == "model"
    for entry in registry
]


def randomized(model: Any) -> LanguageModel:
    """Float64, with noise on all weights: gates and scales that start at 0 or 1 have an effect."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    made: LanguageModel = model.double().eval()
    return made


@torch.no_grad()
def compare(model: LanguageModel, padded: bool, fill: float = 8.0) -> None:
    """Raise NotStaticError if a step is not static, and AssertionError if its logits are others."""
    tokens, segments = tiny_models.tokens(ROWS, ROOM), None
    if padded:  # of different lengths
        segments = torch.where(torch.arange(PROMPT) < torch.tensor([[0], [3], [1]]), -1, 0)
    growing, read = KVCache(), KVCache()
    for cache in (growing, read):
        model.read(tokens[:, :PROMPT], segments, cache)
    static = StaticCache(read, ROOM, tokens.device, fill)
    next_token, seen = torch.empty(ROWS, 1, dtype=torch.long), []
    for i, column in enumerate(tokens[:, PROMPT:-1].split(1, dim=1)):
        next_token.copy_(column)
        expected = model.extend(column, growing)
        with static.step(), Operations(tokens.device) as operations:
            found = model.extend(next_token, static)
        static.length += 1
        seen += [operations.found] if i in RECORDED else []
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(one == seen[0] for one in seen), "operations, shapes, numbers or addresses change from token to token"
    grown = static.growing()
    last = tokens[:, -1:]
    torch.testing.assert_close(model.extend(last, grown), model.extend(last, growing), rtol=1e-9, atol=1e-9)


def assert_static(model: LanguageModel, name: str) -> None:
    """Static, or refused for the reason in REFUSED; with prompts of one length, and of different ones."""
    for padded in (False, True):
        if name not in REFUSED:
            compare(model, padded)
            continue
        with pytest.raises(NotStaticError, match=REFUSED[name]):
            compare(model, padded)


@pytest.mark.matrix
@pytest.mark.parametrize("name", PARTS)
def test_each_part_is_static_or_refused(name: str) -> None:
    kind, _, option = name.partition("=")
    model = randomized(tiny_models.model(REGISTRIES[kind][option], max_len=ROOM))
    if isinstance(model, Encoder):
        pytest.skip("an encoder does not decode")
    assert_static(model, name)


@torch.no_grad()
@pytest.mark.matrix
@pytest.mark.parametrize("name", PARTS)
def test_no_static_step_copies_from_or_to_the_host(name: str) -> None:
    """With the meta device in place of a GPU; what is refused on a CPU is refused there, if it does not wait before."""
    kind, _, option = name.partition("=")
    model = meta_copy(tiny_models.model(REGISTRIES[kind][option], max_len=ROOM)).eval()
    if isinstance(model, Encoder):
        pytest.skip("an encoder does not decode")
    device = torch.device("meta")
    tokens, segments = (torch.zeros(ROWS, PROMPT, dtype=torch.long, device=device) for _ in range(2))
    read = KVCache()
    model.read(tokens, segments, read)
    static = StaticCache(read, ROOM, device)

    def step() -> None:
        with static.step(), Operations(device), meta_as_gpu():
            model.extend(tokens[:, :1], static)

    if name not in REFUSED:
        step()
        return
    with pytest.raises((NotStaticError, WaitsForDevice)):
        step()


@pytest.mark.parametrize("name", VARIANTS)
def test_other_settings_are_static_too(name: str) -> None:
    attention, knobs = VARIANTS[name]
    others = {kind: value for kind, value in knobs.items() if kind in REGISTRIES}
    own = {knob: value for knob, value in knobs.items() if knob not in REGISTRIES}
    config = tiny_models.config(REGISTRIES["attention"][attention], own, max_len=ROOM)
    for kind, value in others.items():
        config[kind] = REGISTRIES[kind][value["name"]].defaults | value
    assert_static(randomized(build_model(config, tiny_models.VOCAB)), f"settings={name}")


@torch.no_grad()
@pytest.mark.parametrize("name", ["peft=prefix", "peft=prompt", "peft=llama_adapter", "peft=lora", "quantization=int8"])
def test_tuned_and_quantized_models_are_static(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual tokens stand before each text, and are visible to it."""
    kind, _, option = name.partition("=")
    part = REGISTRIES[kind][option]
    with torch.enable_grad():
        model = tiny_models.model() if kind == "quantization" else sample_parts.tuned_and_trained(part)
    if kind == "quantization":
        tiny_models.quantize(model, sample_parts.made(part))
    monkeypatch.setattr(token_steps, "graphs_for", lambda device: Unreplayed())
    steps, growing, tokens = TokenSteps(model.eval(), KVCache(), 20), KVCache(), tiny_models.tokens(ROWS, 26)
    for cache in (steps.cache, growing):
        model.read(tokens[:, :6], None, cache)
    for column in tokens[:, 6:].unbind(1):
        torch.testing.assert_close(steps.extend(column), model.extend(column[:, None], growing), rtol=1e-5, atol=1e-5)
    assert isinstance(steps.cache, StaticCache), steps.refused
