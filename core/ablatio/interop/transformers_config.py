"""Config of exported models for transformers' Auto classes.

It is light, because `autoload` registers it in every process that imports transformers.  An object of it brings in the
model's class.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ablatio.errors import UserError

MODEL_TYPE = "ablatio"
MODEL = "ablatio.interop.transformers_model"  # registers the model's class when it is imported


class AblatioConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of an exported model.

    parts  sections of the run's resolved config that shape the model
    ids    number of the tokenizer's ids, which are followed by those of the objective
    """

    model_type = MODEL_TYPE

    def __init__(self, parts: Mapping[str, Any] | None = None, ids: int = 257, **settings: Any) -> None:
        from ablatio.config.from_transformers import CODE_KEYS

        self.parts, self.ids = dict(parts or {}), ids
        if found := [key for key in CODE_KEYS if settings.get(key)]:
            raise UserError(
                f"config.json has the key `{found[0]}`, which refers to code; only installed code is run\n"
                "    try: ablatio export RUN --to DIR, which writes a folder without it"
            )
        model = self.parts.get("model") or {}
        settings.setdefault("tie_word_embeddings", bool(model.get("tied", True)))
        self.num_hidden_layers = int(model.get("n_layers") or 1)
        self.hidden_size = int(model.get("d_model") or 1)
        super().__init__(**settings)
        importlib.import_module(MODEL)
