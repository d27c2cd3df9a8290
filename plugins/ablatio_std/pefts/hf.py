"""Every method of the library peft that stands beside layers, through one part."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import yaml
from torch import nn

from ablatio import pefts
from ablatio.errors import UserError
from ablatio.knobs import did_you_mean
from ablatio.model.adapters import Targets, freeze, targets_of
from ablatio.model.roles import named_seed, seeded
from ablatio_std.pefts._common import QUERY_VALUE

OURS = {
    "prompt_tuning": "prompt",
    "multitask_prompt_tuning": "prompt",
    "p_tuning": "p_tuning",
    "prefix_tuning": "prefix",
    "cpt": "prompt",
    "cartridge": "p_tuning_v2",
    "adaption_prompt": "llama_adapter",
}


@pefts.register("hf")
class HuggingFace:
    """W x + what peft's `method` adds, in peft's own layers.  Source: the library peft, https://huggingface.co/docs/peft.

    `settings`: of the method's config, as peft names them: peft.settings=['r=4','lora_alpha=8'].
    """

    def __init__(
        self,
        *,
        method: Annotated[str, "as peft calls it: vblora, miss, randlora, c3a, road ..."] = "lora",
        targets: Targets = QUERY_VALUE,
        settings: Annotated[tuple[str, ...], "of the method's config, each key=value"] = (),
    ) -> None:
        self.method, self.targets, self.settings = method, targets, settings

    def apply(self, model: nn.Module, seed: int) -> None:
        paths = list(targets_of(model, self.targets))
        config, tuner = self.config(paths)
        freeze(model)
        with warnings.catch_warnings(), seeded(named_seed(seed, "peft")):
            warnings.simplefilter("ignore")  # on dtypes and names of models that it does not know
            try:
                tuner(model, config, "default")
            except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
                raise UserError(f"peft's {self.method} refuses this model: {error}\n    try: other settings") from error
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"peft's {self.method} trains nothing with these settings\n    try: other settings")

    def config(self, paths: Sequence[str]) -> tuple[Any, Any]:
        """peft's config of the method, and the class that puts it into a model."""
        try:
            from peft import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
            from peft import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
        except ImportError:
            raise UserError("peft=hf needs the library peft\n    try: pip install peft") from None
        known = {kind.value.lower(): kind for kind in TUNERS if kind.value.lower() not in OURS}
        if self.method in OURS:
            raise UserError(
                f"peft's {self.method} wraps a model and does not stand in one\n    try: peft={OURS[self.method]}"
            )
        if self.method not in known:
            raise UserError(
                f"peft.method={self.method}: peft has no such method{did_you_mean(self.method, known)}; it has "
                f"{', '.join(sorted(known))}"
            )
        made = CONFIGS[known[self.method]]
        fields = {field.name for field in dataclasses.fields(made) if field.init}
        values: dict[str, Any] = {"target_modules": paths} if "target_modules" in fields else {}
        for setting in self.settings:
            key, sign, text = setting.partition("=")
            if not sign or key not in fields:
                raise UserError(
                    f"peft.settings: {setting!r} came, key=value with a key of {made.__name__} was expected"
                    f"{did_you_mean(key, fields)}"
                )
            values[key] = yaml.safe_load(text)
        try:
            return made(**values), TUNERS[known[self.method]]
        except (ValueError, TypeError) as error:
            raise UserError(f"peft's {made.__name__} refuses {list(self.settings)}: {error}") from None
