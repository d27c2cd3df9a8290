"""torch.compile does not change outputs and gradients."""

import pytest
import torch
from helpers.support import model_config

from ablatio.config.compose import compose_run
from ablatio.model.build import build_model
from ablatio.model.builder import PartChoice
from ablatio.model.example import Example
from ablatio.registry.kinds import objectives
from ablatio.storage.paths import shipped

GPT2 = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope", "attention": "gqa"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
@pytest.mark.parametrize(
    "options", [pytest.param(GPT2, id="gpt2", marks=pytest.mark.long), pytest.param(LLAMA, id="llama")]
)
def test_compiled_blocks_equal_eager_blocks(options):
    def run(compiled):
        model = build_model(model_config(**options, n_layers=1), 50)
        if compiled:
            for layer in model.model.layers:
                layer.compile(fullgraph=True)
        x = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(0))
        total, *_ = model.loss(Example(x[:, :-1], x[:, 1:]))
        total.backward()
        return [total.detach(), *(p.grad for p in model.parameters())]

    torch._dynamo.reset()
    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Presets that set parts of two layers, or have experts in the second one.
OF_TWO_LAYERS = ("gemma3", "glam", "gshard", "jamba", "qwen3_next", "smollm3", "switch")


def presets():
    return sorted(path.stem for path in (shipped("conf") / "preset").glob("*.yaml"))


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("preset", presets())
def test_each_preset_compiles(preset):
    """`trainer.compile=true`: loss and gradients are those of the eager model."""
    torch._dynamo.reset()
    sizes = [
        "model.d_model=32",
        f"model.n_layers={2 if preset in OF_TWO_LAYERS else 1}",
        "model.n_heads=4",
        "model.max_len=32",
        "model.dropout=0",
    ]
    config = compose_run([f"preset={preset}", *sizes]).config
    choice = PartChoice.of(config["objective"])
    objective = objectives.build(choice.name, choice.knobs, vocab_size=64, eos=0, max_len=32)
    rows = torch.randint(1, 64, (4, 33), generator=torch.Generator().manual_seed(0))
    example = objective(rows, None, torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for compiled in (False, True):
        model = build_model(config, 64).eval()
        if compiled:
            model.compile_layers()
        total, weight, _ = model.loss(example)
        (total / weight).backward()
        losses.append((total / weight).detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
