"""All methods of the library peft through one part: those in layers and those with virtual tokens."""

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
# Methods that do not work inside ablatio's models: the reason, and an option that does.
ELSEWHERE = {
    "adalora": ("needs a call from peft's own trainer after each step", "peft=adalora"),
    "adaption_prompt": ("supports only some attention classes of transformers", "peft=llama_adapter"),
    "cpt": ("needs its own loss, on the answers inside its prompt", "peft.method=prompt_tuning"),
    "lily": (
        "weights its experts by a mean over all tokens of a batch, so that tokens would depend on later tokens and on "
        "other texts",
        "peft.method=lora",
    ),
    "shadow": ("runs a second decoder of transformers beside the first", "peft=parallel_adapter"),
    "trainable_tokens": ("trains rows of the embedding, and the loss reads the embedding's matrix", "peft=prompt"),
    "xlora": ("mixes trained LoRAs by a first pass of a model of transformers", "peft=lorahub"),
}


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Restore the environment variables on exit.

    Without a CUDA compiler peft's BOFT leaves CXX=gcc behind, and code that torch compiles later lacks libstdc++.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pefts.register("hf")
class HuggingFace:
    """W x plus the update of peft's `method`, in peft's own layers; or peft's own virtual tokens before each text.

    Source: the library peft, https://huggingface.co/docs/peft.  Initial values are peft's; with a few methods the
    initial model differs from the base.  `settings` are fields of the method's config in peft:
    peft.settings=['r=4','lora_alpha=8'].

    Raises:
        EnvironmentFault: a library that the method needs is not installed.
        UserError: peft is not installed, does not have the method, or refuses the settings or the model.
    """

    packages = ("peft=ablatio[tuning]",)

    def __init__(
        self,
        *,
        method: Annotated[str, "name of the method in peft: vblora, miss, randlora, c3a, road ..."] = "lora",
        targets: Targets = QUERY_VALUE,
        settings: Annotated[tuple[str, ...], "fields of the method's config in peft, each key=value"] = (),
    ) -> None:
        self.method, self.targets, self.settings = method, targets, settings
        self.batch_dependent = method == "poly"  # its router draws random numbers for each row

    def apply(self, model: nn.Module, seed: int) -> None:
        paths = [] if self.method in PROMPTS else list(targets_of(model, self.targets))
        self.made, tuner = self.config(paths)
        # peft draws its initial values from torch's global generator: a named seed makes them those of this run.
        with warnings.catch_warnings(), _restored_environment(), seeded(named_seed(seed, "peft")):
            warnings.simplefilter("ignore")  # peft warns of dtypes and model names that it does not know
            try:
                self._apply(model, tuner, seed)
            except ImportError as error:
                raise self._missing_library(error) from None
            except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
                raise UserError(f"peft's {self.method} refuses this model: {error}\n{self._hint()}") from error
        # Some settings leave a method without parameters; training would then run and change nothing.
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"peft's {self.method} has no trainable parameter with these settings\n{self._hint()}")

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
        """Return peft's config of the method, and peft's class that applies it to a model."""
        try:
            from peft import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
            from peft import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
        except ImportError:
            raise UserError("peft=hf needs the library peft\n    try: pip install 'ablatio[tuning]'") from None
        known = {kind.value.lower(): kind for kind in TUNERS if kind.value.lower() not in ELSEWHERE}
        if self.method in ELSEWHERE:
            why, instead = ELSEWHERE[self.method]
            raise UserError(f"peft's {self.method} {why}\n    try: {instead}")
        if self.method not in known:
            raise UserError(
                f"peft.method={self.method}: the library peft has no such method{did_you_mean(self.method, known)}; "
                f"known methods: {', '.join(sorted(known))}\n    try: peft.method=lora"
            )
        made = CONFIGS[known[self.method]]
        fields = {field.name: field for field in dataclasses.fields(made) if field.init}
        self.fields = fields
        values = self._model_settings(fields, paths)
        for setting in self.settings:
            key, sign, text = setting.partition("=")
            if not sign or key not in fields:
                raise UserError(
                    f"peft.settings: {setting!r} came, key=value with a key of {made.__name__} was expected"
                    f"{did_you_mean(key, fields)}\n{self._hint()}"
                )
            # As on Hydra's command line: r=4 is a number, and a=[x,y] a list.
            values[key] = yaml.safe_load(text)
        try:
            return made(**values), TUNERS[known[self.method]]
        except ImportError as error:
            raise self._missing_library(error) from None
        except (ValueError, TypeError) as error:
            raise UserError(f"peft's {made.__name__} refuses {list(self.settings)}: {error}\n{self._hint()}") from None

    def _model_settings(self, fields: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
        """Settings that depend on the model, for which peft's defaults cannot be used."""
        settings: dict[str, Any] = {"target_modules": list(paths)} if "target_modules" in fields and paths else {}
        if "feedforward_modules" in fields:
            # IA3 scales the input of these modules and the output of the others.
            settings["feedforward_modules"] = [path for path in paths if ".mlp." in path]
        if self.method in PROMPTS:
            # As many as our own prompt methods have.
            settings["num_virtual_tokens"] = 20
        return settings

    def _missing_library(self, error: ImportError) -> EnvironmentFault:
        """Make the error for a method that needs another library, with the command that peft names."""
        command = re.search(r"pip install [\w-]+", str(error))
        return EnvironmentFault(f"peft's {self.method}: {error}" + (f"\n    try: {command[0]}" if command else ""))

    def _hint(self) -> str:
        """Lines for an error: the method's scalar settings with their defaults, and a method that fits every model."""
        scalars = {
            name: field.default
            for name, field in self.fields.items()
            if isinstance(field.default, bool | int | float) and name != "inference_mode"
        }
        listed = ", ".join(f"{name}={value}" for name, value in scalars.items())
        return f"    its scalar settings, for peft.settings: {listed}\n    try: peft.method=lora peft.settings=[]"

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export peft's own tensors and config; None for virtual tokens, which only ablatio's format can hold.

        The order of rows in the tensors is unknown, so by_row is None.
        """
        if self.method in PROMPTS:
            return None
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self.tuner, save_embedding_layers=False)
        # The longest path first: one may be the beginning of another.
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
    """Pass task 0 for every row to a layer of Poly: a run has one task."""
    return args, {**named, "task_ids": torch.zeros(len(args[0]), dtype=torch.long, device=args[0].device)}


for _method in PROMPTS:
    rule(
        when=f"peft.name == 'hf' and peft.method == '{_method}' and not facts.attention.prefix",
        why="peft's {peft.method} puts keys and values before each text, and attention={attention.name} does not "
        "support them",
        fix="attention=mha",
        where="peft",
    )
    if not _method.startswith(("prefix", "cartridge")):
        rule(
            when=f"peft.name == 'hf' and peft.method == '{_method}' and 'encoder' in facts.architecture.stacks",
            why="virtual tokens of peft's {peft.method} must attend only to each other, and an encoder's would attend "
            "to its text; with prefix_tuning they are keys and values, which attend to nothing",
            fix="peft.method=prefix_tuning",
            where="peft.method",
        )
