"""Models are built on the meta device whole, also when transformers was the first to use a device as a context."""

import subprocess
import sys

LOADED_FIRST = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
small = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)
LlamaForCausalLM(small).save_pretrained(sys.argv[1])
LlamaForCausalLM.from_pretrained(sys.argv[1])
with torch.device("meta"):
    print(torch.linspace(0, 1, 3).device, end=" ")
from ablatio.model.on_meta import on_meta
with on_meta():
    print(torch.linspace(0, 1, 3).device, torch.linspace(0, 1, 3, device="cpu").device, end=" ")
from ablatio.config.compose import compose_run
from ablatio.model.cost.parameters import measure
measure(compose_run(["attention=rwkv7", "position=none", "size=tiny"]).config, 40)
print("measured")
"""


def test_a_model_of_transformers_was_loaded_before(tmp_path) -> None:
    """torch's own context leaves out linspace there ("cpu" first): this test says when on_meta is no longer needed."""
    done = subprocess.run([sys.executable, "-c", LOADED_FIRST, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-4:] == ["cpu", "meta", "cpu", "measured"], done.stdout
