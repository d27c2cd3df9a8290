"""Random stacks whose layers have different parts: two lists of options and one single layer."""

import random
from typing import Any

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES

SIZE = ("model.d_model=32", "model.n_heads=4", "model.n_layers=4", "model.max_len=32")
TRIES = 30  # draws for one seed until a stack is accepted


def drawn(seed: int) -> list[str]:
    """Random lists of two kinds, and a single layer of a third, as overrides."""
    draw = random.Random(seed)
    kinds = draw.sample([registry.kind for registry in per_layer.kinds() if registry.scope == "model"], 3)
    options = {kind: [e.name for e in REGISTRIES[kind] if "embed" not in e.facts.get("uses", ())] for kind in kinds}
    lists = [f"layers.{k}=[{','.join(draw.choices(options[k], k=draw.randint(1, 4)))}]" for k in kinds[:2]]
    return [*lists, f"layers.at.{kinds[2]}={{{draw.randint(-4, 3)}: {draw.choice(options[kinds[2]])}}}"]


def random_stack(seed: int, *settings: str) -> dict[str, Any] | None:
    """The config of the first stack of this seed that is accepted; None if there is none in TRIES draws.

    A refusal must name the layer or the kind.
    """
    for number in range(TRIES):
        try:
            return compose_run([*SIZE, *settings, *drawn(seed + 1000 * number)]).config
        except ConfigError as error:
            assert "layer" in str(error)
    return None
