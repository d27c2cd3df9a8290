"""Transformers classes for ablatio's models.

AutoModelForCausalLM loads the folders that `ablatio export` writes: where ablatio is installed, `autoload` makes
transformers know the class; `import ablatio.hf` does so, too.

All code comes from the installed package. A folder holds only numbers and a config of plain values, which is checked
like the config of a run; a folder that refers to code is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ablatio.config import kind_lists
from ablatio.config import schema as run_config
from ablatio.config.from_transformers import refuse_code
from ablatio.errors import ConfigError, UserError, did_you_mean
from ablatio.interop.transformers_config import MODEL_TYPE, AblatioConfig
from ablatio.model.build import build_model
from ablatio.model.example import PADDING
from ablatio.model.kv_cache import KVCache
from ablatio.registry import discovery
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.session_parts import how_to_register, unregistered
from ablatio.storage.state_json import refuse_builders


class DecodingCache(Cache):  # type: ignore[misc]
    """Adapter of ablatio's KVCache to the cache interface of `generate`.

    started  number of cached tokens that `generate` did not pass: the eos that starts a target after its source
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.ours, self.started = KVCache(), 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of cached tokens that `generate` has passed."""
        return self.ours.length - self.ours.virtual - self.started

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch rows, for beam search."""
        self.ours.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch rows `indices`."""
        self.ours.select(indices)

    def reset(self) -> None:
        """Empty the cache."""
        self.ours, self.started = KVCache(), 0

    @property
    def is_compileable(self) -> bool:
        """False: the buffers grow, so their shapes are not static."""
        return False


class AblatioForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Causal language model of any combination of parts; the weights have the same names as in a run."""

    config_class = AblatioConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: AblatioConfig) -> None:
        super().__init__(config)
        parts = checked(config.parts)
        eos = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
        with torch.device("cpu"):  # loaders construct on meta, where the non-persistent buffers would get no values
            made = build_model(parts, config.ids, eos)
        self.tables = {m: {n: m.get_buffer(n).clone() for n in m._non_persistent_buffers_set} for m in made.modules()}
        self.config.vocab_size = made.vocab_size
        self.inner = [made]  # in a list, so that it is not registered: its children are, under their names in a run
        for name, module in made.named_children():
            self.add_module(name, module)
        names = dict[int, str]()  # shared weights (a tied head, shared layers) are in the file under one name
        every = made.named_parameters(remove_duplicate=False)
        tied = {n: names[id(p)] for n, p in every if names.setdefault(id(p), n) != n}
        if tied:
            self._tied_weights_keys = tied
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Restore non-persistent buffers, which loaders leave uninitialized; weights are initialized by their parts."""
        for name, table in self.tables.get(module, {}).items():
            module.get_buffer(name).copy_(table)

    def get_input_embeddings(self) -> Any:
        """Return the token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> Any:
        """Return the output head."""
        return self.lm_head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes a DecodingCache

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DecodingCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits (B, T, V) of input_ids (B, T), and the mean cross-entropy if there are labels.

        attention_mask (B, past + T): 0 for padding; labels (B, T): -100 for tokens that are not scored.
        """
        if past_key_values is None and use_cache:
            past_key_values = DecodingCache()
        made, cache = self.inner[0], past_key_values.ours if past_key_values is not None else None
        segments = None
        if attention_mask is not None and not bool(attention_mask.all()):
            segments = torch.where(attention_mask[:, -input_ids.shape[1] :].bool(), 0, PADDING)
        if cache is not None and cache.length == 0 and made.opens:
            assert past_key_values is not None
            logits, past_key_values.started = made.read(input_ids, segments, cache)[:, None], 1
        else:
            logits = made(input_ids, segments, cache)
        loss = None
        if labels is not None:
            flat = logits[:, :-1].flatten(0, 1)
            # In float32, since the probabilities of a large vocabulary lose their digits in half precision.
            loss = torch.nn.functional.cross_entropy(flat.float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def checked(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Check the parts of a config.json like a run's config, and return them completed with defaults.

    Raises ConfigError for unknown options, invalid values and invalid combinations.
    """
    discovery.load()
    refuse_builders(parts, "parts")
    shaping = kind_lists.model_keys()
    given = run_config.defaults() | {key: parts[key] for key in shaping if key in parts}
    others = {kind for kind in kind_lists.needed() if kind not in shaping}  # how it was trained does not matter here
    if problems := [p for p in run_config.check(given) if p.where not in others]:
        for kind, name in unregistered(given):
            if not did_you_mean(name, REGISTRIES[kind].entries):  # no slip of the pen: a part of somebody's own
                raise UserError(f"the exported model needs its parts: {how_to_register(kind, name)}")
        raise ConfigError(problems)
    return run_config.cast(given)


def load(folder: str | Path) -> PreTrainedModel:
    """Load a folder that `export` wrote, as ablatio's class or a transformers class; refuse code in the folder."""
    refuse_code(Path(folder))
    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    auto = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
    how = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    found: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32, **how)
    return found


AutoConfig.register(MODEL_TYPE, AblatioConfig, exist_ok=True)
AutoModelForCausalLM.register(AblatioConfig, AblatioForCausalLM, exist_ok=True)
