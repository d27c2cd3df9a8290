"""Every method of the library peft through one part: beside layers, or before the texts."""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import yaml
from torch import Tensor, nn

from ablatio import pefts, rule
from ablatio.errors import EnvironmentFault, UserError, did_you_mean
from ablatio.model.parameter_roles import named_seed, seeded
from ablatio.model.peft.adapters import Targets, freeze, targets_of
from ablatio_std.pefts._common import QUERY_VALUE, ToPeft

PROMPTS = ("prompt_tuning", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "cartridge")
# What does not stand in a model by itself: why, and what does the job.
ELSEWHERE = {
    "adalora": ("is told of each step by a trainer of peft's", "peft=adalora"),
    "adaption_prompt": ("knows some attentions of transformers alone", "peft=llama_adapter"),
    "cpt": ("has a loss of its own, on the answers inside its prompt", "peft.method=prompt_tuning"),
    "lily": (
        "weighs its parts by the mean over all tokens of a batch: a text would see what comes later, and other texts",
        "peft.method=lora",
    ),
    "shadow": ("runs a second decoder of transformers beside the first", "peft=parallel_adapter"),
    "trainable_tokens": ("trains rows of the embedding, whose matrix the loss reads by itself", "peft=prompt"),
    "xlora": ("mixes trained LoRAs by a first pass of a model of transformers", "peft=lorahub"),
}


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without a compiler for CUDA peft's BOFT leaves CXX=gcc behind, and what torch compiles then lacks libstdc++."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pefts.register("hf")
class HuggingFace:
    """W x + what peft's `method` adds, in peft's own layers; or peft's own virtual tokens before each text.

    Source: the library peft, https://huggingface.co/docs/peft.  It starts as peft starts it, which for a few methods is
    not the base.  `settings`: of the method's config, as peft names them: peft.settings=['r=4','lora_alpha=8'].
    """

    def __init__(
        self,
        *,
        method: Annotated[str, "as peft calls it: vblora, miss, randlora, c3a, road ..."] = "lora",
        targets: Targets = QUERY_VALUE,
        settings: Annotated[tuple[str, ...], "of the method's config, each key=value"] = (),
    ) -> None:
        self.method, self.targets, self.settings = method, targets, settings
        self.batch_dependent = method == "poly"  # it draws anew for each row

    def apply(self, model: nn.Module, seed: int) -> None:
        paths = [] if self.method in PROMPTS else list(targets_of(model, self.targets))
        self.made, tuner = self.config(paths)
        with warnings.catch_warnings(), _own_environment(), seeded(named_seed(seed, "peft")):
            warnings.simplefilter("ignore")  # on dtypes and names of models that it does not know
            try:
                self._apply(model, tuner, seed)
            except ImportError as error:
                raise self._lacking(error) from None
            except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
                raise UserError(f"peft's {self.method} refuses this model: {error}\n{self._way_out()}") from error
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"peft's {self.method} trains nothing with these settings\n{self._way_out()}")

    def _apply(self, model: nn.Module, tuner: Any, seed: int) -> None:
        if self.method in PROMPTS:
            from ablatio_std.pefts.hf_prompts import PeftPrompts

            PeftPrompts(self.method, self.made, tuner).apply(model, seed)
            return
        freeze(model)
        self.tuner = tuner(model, self.made, "default")
        for layer in model.modules() if self.method == "poly" else ():
            if "poly_router" in layer._modules:
                layer.register_forward_pre_hook(_one_task, with_kwargs=True)

    def config(self, paths: Sequence[str]) -> tuple[Any, Any]:
        """peft's config of the method, and the class that puts it into a model."""
        try:
            from peft import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
            from peft import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
        except ImportError:
            raise EnvironmentFault("peft=hf needs the library peft\n    try: pip install peft") from None
        known = {kind.value.lower(): kind for kind in TUNERS if kind.value.lower() not in ELSEWHERE}
        if self.method in ELSEWHERE:
            why, instead = ELSEWHERE[self.method]
            raise UserError(f"peft's {self.method} {why}\n    try: {instead}")
        if self.method not in known:
            raise UserError(
                f"peft.method={self.method}: peft has no such method{did_you_mean(self.method, known)}; it has "
                f"{', '.join(sorted(known))}"
            )
        made = CONFIGS[known[self.method]]
        fields = {field.name: field for field in dataclasses.fields(made) if field.init}
        self.fields = fields
        values = self._given(fields, paths)
        for setting in self.settings:
            key, sign, text = setting.partition("=")
            if not sign or key not in fields:
                raise UserError(
                    f"peft.settings: {setting!r} came, key=value with a key of {made.__name__} was expected"
                    f"{did_you_mean(key, fields)}\n{self._way_out()}"
                )
            values[key] = yaml.safe_load(text)
        try:
            return made(**values), TUNERS[known[self.method]]
        except ImportError as error:
            raise self._lacking(error) from None
        except (ValueError, TypeError) as error:
            raise UserError(
                f"peft's {made.__name__} refuses {list(self.settings)}: {error}\n{self._way_out()}"
            ) from None

    def _given(self, fields: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
        """What no default of peft's says of this model."""
        found: dict[str, Any] = {"target_modules": list(paths)} if "target_modules" in fields and paths else {}
        if "feedforward_modules" in fields:
            found["feedforward_modules"] = [path for path in paths if ".mlp." in path]
        if self.method in PROMPTS:
            found["num_virtual_tokens"] = 20
        return found

    def _lacking(self, error: ImportError) -> EnvironmentFault:
        """A method may need another library; peft names it."""
        command = re.search(r"pip install [\w-]+", str(error))
        return EnvironmentFault(f"peft's {self.method}: {error}" + (f"\n    try: {command[0]}" if command else ""))

    def _way_out(self) -> str:
        """What can be set, and a method that goes everywhere."""
        usual = {
            name: field.default
            for name, field in self.fields.items()
            if isinstance(field.default, bool | int | float) and name != "inference_mode"
        }
        listed = ", ".join(f"{name}={value}" for name, value in usual.items())
        return f"    its numbers, for peft.settings: {listed}\n    try: peft.method=lora peft.settings=[]"

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Of the rows of its tensors nothing is known here; of virtual tokens our form is the only one."""
        if self.method in PROMPTS:
            return None
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self.tuner, save_embedding_layers=False)
        paths = sorted(self.made.target_modules, key=len, reverse=True)
        layers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            own = name.removeprefix("model.")
            path = next((p for p in paths if own.startswith(f"{p}.")), "")
            whole = own if own.startswith("base_model.") else f"base_model.model.{own}"
            layers.setdefault(path, {})[own.removeprefix(f"{path}.") if path else whole] = tensor
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in self.made.to_dict().items()}
        return config | {"task_type": "CAUSAL_LM", "inference_mode": True}, layers, None


def _one_task(layer: nn.Module, args: Any, named: Any) -> Any:
    """Poly asks which task each row is of; a run has one."""
    return args, {**named, "task_ids": torch.zeros(len(args[0]), dtype=torch.long, device=args[0].device)}


for _method in PROMPTS:
    rule(
        when=f"peft.name == 'hf' and peft.method == '{_method}' and not facts.attention.prefix",
        why="peft's {peft.method} puts keys and values before each text, and attention={attention.name} takes none",
        fix="attention=mha",
        where="peft",
    )
    if not _method.startswith(("prefix", "cartridge")):
        rule(
            when=f"peft.name == 'hf' and peft.method == '{_method}' and 'encoder' in facts.architecture.stacks",
            why="virtual tokens of peft's {peft.method} read one another alone, and those of an encoder would read its "
            "text; keys and values need not read",
            fix="peft.method=prefix_tuning",
            where="peft.method",
        )
