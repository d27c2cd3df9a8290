"""Our models as models of transformers.

After `import ablatio.hf`, AutoModelForCausalLM loads the folders that `ablatio export` writes.

The code is this installed package; a folder brings numbers and a config of plain values, which is checked like that of
any run.  A folder that names code of its own is refused.
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
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ablatio.config import kind_lists
from ablatio.config import schema as run_config
from ablatio.config.from_transformers import CODE_KEYS, refuse_code
from ablatio.errors import ConfigError, UserError
from ablatio.model.build import build_model
from ablatio.model.example import PADDING
from ablatio.model.kv_cache import KVCache
from ablatio.registry import discovery
from ablatio.storage.state_json import refuse_builders


class AblatioConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """`parts`: the resolved config of a run; `ids`: those of its tokenizer, behind which the objective's own follow."""

    model_type = "ablatio"

    def __init__(self, parts: Mapping[str, Any] | None = None, ids: int = 257, **settings: Any) -> None:
        self.parts, self.ids = dict(parts or {}), ids
        if found := [key for key in CODE_KEYS if settings.get(key)]:
            raise UserError(f"config.json holds `{found[0]}`, which names code; only the code that is installed runs")
        model = self.parts.get("model") or {}
        settings.setdefault("tie_word_embeddings", bool(model.get("tied", True)))
        self.num_hidden_layers = int(model.get("n_layers") or 1)
        self.hidden_size = int(model.get("d_model") or 1)
        super().__init__(**settings)


class DecodingCache(Cache):
    """Our cache of keys, values and states, as `generate` hands it from step to step.

    started  tokens in it that begin a target behind its source, which `generate` has not handed over
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.ours, self.started = KVCache(), 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.ours.length - self.ours.virtual - self.started

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.ours.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.ours.select(indices)

    def reset(self) -> None:
        self.ours, self.started = KVCache(), 0

    @property
    def is_compileable(self) -> bool:
        return False


class AblatioForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Any combination of parts that continues a text; the weights have the names that they have in a run."""

    config_class = AblatioConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: AblatioConfig) -> None:
        super().__init__(config)
        parts = checked(config.parts)
        eos = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
        with torch.device("cpu"):  # not on meta, where a loader begins: tables that no file holds would be lost
            made = build_model(parts, config.ids, eos)
        self.tables = {m: {n: m.get_buffer(n).clone() for n in m._non_persistent_buffers_set} for m in made.modules()}
        self.config.vocab_size = made.vocab_size
        self.inner = [made]  # in a list: its modules are registered below, under the names that they have in a run
        for name, module in made.named_children():
            self.add_module(name, module)
        names = dict[int, str]()  # of a tied head, and of layers that share their weights, one name is in the file
        every = made.named_parameters(remove_duplicate=False)
        tied = {n: names[id(p)] for n, p in every if names.setdefault(id(p), n) != n}
        if tied:
            self._tied_weights_keys = tied
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        """Parts start themselves; a loader empties the tables that are in no file, and asks for them here."""
        for name, table in self.tables.get(module, {}).items():
            module.get_buffer(name).copy_(table)

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> Any:
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
        """Logits (B, T, V).  attention_mask (B, past + T): 0 for padding; labels: -100 where nothing is asked."""
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
            loss = torch.nn.functional.cross_entropy(flat.float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def checked(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts out of a config.json: plain values, known options, a combination that may be."""
    discovery.load()
    refuse_builders(parts, "parts")
    shaping = (*kind_lists.shaping(), "model", "match")
    given = run_config.defaults() | {key: parts[key] for key in shaping if key in parts}
    others = {kind for kind in kind_lists.needed() if kind not in shaping}  # what trained it is of no concern here
    if problems := [p for p in run_config.check(given) if p.where not in others]:
        raise ConfigError(problems)
    return run_config.cast(given)


def load(folder: str | Path) -> PreTrainedModel:
    """The model in a folder that `export` wrote, of our class or of transformers' own; code in it is refused."""
    refuse_code(Path(folder))
    settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    auto = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
    how = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    found: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32, **how)
    return found


AutoConfig.register("ablatio", AblatioConfig, exist_ok=True)
AutoModelForCausalLM.register(AblatioConfig, AblatioForCausalLM, exist_ok=True)
