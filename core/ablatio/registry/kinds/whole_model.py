"""Kinds of the model as a whole: its architecture, and how its weights are initialized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ablatio.model.parameter_roles import ParameterInfo


class Architecture(Protocol):
    """Builds the LanguageModel from a `builder` (ablatio.model.builder.ModelBuilder).

    A class inherits from ablatio.model.language_model.LanguageModel.

    Wiring:
    builder    makes the stacks and their parts from the config

    Facts:
    mask       which tokens each token attends to: causal | prefix | full | encoder_decoder
    accepts    kinds of examples that the model can be trained on: the fact `produces` of an objective
    stacks     the stacks it has: encoder, decoder or both
    objective  name of the usual objective for it, proposed in error messages
    waits      why a training step makes the host wait for a GPU; "": it does not
    """

    mask: ClassVar[str]
    accepts: ClassVar[Sequence[str]]
    stacks: ClassVar[Sequence[str]]
    objective: ClassVar[str]
    waits: ClassVar[str]


class Init(Protocol):
    """Initializes one parameter in place; called for each one, with a generator seeded by the parameter's name.

    Seeding by name gives a parameter the same initial value in every arm that has it, whatever the other parts are.

    Methods:
    __call__(weight, info, generator)  sets `weight` in place; `info` has name, role, shape and fans of the parameter
                              (ablatio.model.parameter_roles.ParameterInfo)

    Optional methods:
    rate(info)                factor on the learning rate of a parameter
    logit_scale(d_model)      factor on the output logits, used if `model.logit_scale` is null
    attention_scale(d_head)   factor on the attention logits, used if `model.attention_scale` is null

    Optional attribute:
    fold  True if `attention_scale` folds a factor into the initial q_proj; it is not asked if the attention normalizes
          its queries, which would undo the fold
    """

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None: ...


class InitMethods(Protocol):
    """Optional methods of an Init."""

    def rate(self, info: ParameterInfo) -> float: ...

    def logit_scale(self, d_model: int) -> float: ...

    def attention_scale(self, d_head: int) -> float: ...


architectures: Registry[nn.Module] = Registry(
    "architecture",
    "Which stacks the model has and which tokens each token attends to.",
    contract=(Architecture,),
    wiring=("builder",),
    facts={"mask": "causal", "accepts": ("next tokens",), "stacks": ("decoder",), "objective": "lm", "waits": ""},
    scope="model",
    usual="causal",
)

inits: Registry[Init] = Registry(
    "init",
    "How matrices are initialized; vectors are initialized by the part that owns them.",
    contract=(Init, InitMethods),
    calls={("weight", "info", "generator"): {}},
    methods=("__call__",),
    scope="training",
    shapes_model=True,
    usual="gpt2",
)
