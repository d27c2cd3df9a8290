"""torch.compile gives the same model."""

import pytest
import torch
from support import model_config

from ablatio.model.assembly import build_model
from ablatio.model.example import Example

GPT2 = {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope", "attention": "gqa"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own compiler warns about itself
@pytest.mark.parametrize("options", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_compiled_blocks_equal_eager_ones(options):
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
