"""How a model is adapted: in how many bits, with which weights, by which judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.kinds.alignment_inputs import ALL_WORDS
from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ablatio.model.rl.answers import Answer
    from ablatio.model.rl.answers import ReasoningStep as AnswerStep
    from ablatio.registry.kinds.alignment_inputs import Advantages, Metrics


class Quantization(Protocol):
    """`apply(model)` turns the matrices of linear maps into codes of few bits, in place; the maps stay where they are.

    bits   of a code; 32: nothing is done
    qat  a knob, if it has one: weights stay as they are, and each pass rounds them (straight-through gradients)
    """

    bits: ClassVar[int]

    def apply(self, model: nn.Module) -> None: ...


class Peft(Protocol):
    """Makes few weights train in place of all: what is learned stands beside the base, which is frozen bit for bit.

    apply(model, seed)  changes the model in place; afterwards `requires_grad` stands on what trains and on nothing else
    prepare(model)      optional, before that: what becomes of the base itself (its quantisation)
    rate(info)          optional: a factor on the learning rate of a parameter (ablatio.model.parameter_roles)
    before_step(step), after_step(step)  optional, as in a stabilizer; what lasts is kept in buffers of the model

    exact    whether the model at step 0 is the base to the last bit, and not only to rounding
    virtual  whether it adds keys and values of tokens that are not there: then attention must have such
    batch_dependent  as in an Mlp
    """

    exact: ClassVar[bool]
    virtual: ClassVar[bool]
    batch_dependent: ClassVar[bool]

    def apply(self, model: nn.Module, seed: int) -> None: ...


class Alignment(Protocol):
    """A loss on log-probabilities, pure: it names what it wants, from the words in alignment_inputs.

    data             pairs | rankings | labelled | prompts
    loss(...)        (loss, metrics): the mean over the batch, and numbers to log under the names in `metrics`
    rejected         given | reference: in the data, or an answer that the frozen reference gives to the same prompt
    detached         a factor of the loss is held constant in its gradient (a weight, a clipped ratio)
    moves_reference  the reference follows the policy: after each step it becomes rate x policy + (1 - rate) x itself,
                     `reference_rate(step)`; so its log-probabilities cannot be kept

    A policy method (data = prompts) has a second step and says how answers are used:

    advantages(...)  Advantages, from the rewards of one rollout, without gradient
    group            answers to each prompt
    epochs           how often a rollout is passed over
    minibatches      optimizer steps in one pass
    whole_groups     the answers to one prompt stay in one minibatch
    prompts          given | text: a text is cut into prompts, and what follows is the answer that is looked for
    writer           optional: policy | reference: who writes the answers that are learned from; by default the policy
    best_of          optional: n, where the weights stay and the best of n answers is what the model gives
    observe(kl)      optional: the mean KL to the reference of a rollout, before its advantages are asked for
    stops(kl)        optional: whether to leave the rollout, `kl` being that from the policy that wrote it
    resample         optional: how often prompts whose answers all have the advantage 0 are replaced by others, for a
                     method whose advantages ask for nothing but rewards, mask and max_length
    hardness(logits), least_entropy  optional: how hard a prompt is by what the reference says comes next, (N, V) ->
                     (N,), and how hard it must be to be asked; 0: all are asked

    What lasts from rollout to rollout goes through `state_dict()` and `load_state_dict(state)`.
    """

    data: ClassVar[str]
    rejected: ClassVar[str]
    detached: ClassVar[bool]
    moves_reference: ClassVar[bool]
    whole_groups: ClassVar[bool]
    prompts: ClassVar[str]
    metrics: ClassVar[Sequence[str]]
    loss: Callable[..., tuple[Tensor, Metrics]]


class PolicyMethod(Alignment, Protocol):
    """An Alignment whose data are prompts."""

    group: int
    epochs: int
    minibatches: int
    advantages: Callable[..., Advantages]


class Reward(Protocol):
    """How good answers are: N answers (ablatio.model.rl.answers.Answer) -> (N,), higher is better.

    A function part judges one answer and gives a number, or two (answer, other) and gives the chance that the first is
    better, which reward=ranking makes a reward of.  A reward that judges steps gives a list of Steps for each answer,
    and says `per_step`; one that looks at the answers to a prompt side by side says `compares`.  `open_run` (wiring)
    turns the folder of a reward model into a function of answers.
    """

    per_step: ClassVar[bool]
    compares: ClassVar[bool]

    def __call__(self, answers: Sequence[Answer]) -> Tensor | list[list[AnswerStep]]: ...


quantizations: Registry[Quantization] = Registry(
    "quantization",
    "How many bits a frozen weight takes.",
    methods=("apply",),
    facts={"bits": 32},
    default="none",
    scope="tuning",
)

pefts: Registry[Peft] = Registry(
    "peft",
    "Which weights train: all, or a few beside a frozen base.",
    methods=("apply",),
    facts={"exact": True, "virtual": False, "metrics": (), "batch_dependent": False},
    default="none",
    scope="tuning",
)

alignments: Registry[Alignment] = Registry(
    "alignment",
    "What preferences and rewards teach: a loss on log-probabilities.",
    methods=("loss",),
    facts={
        "data": "pairs",
        "rejected": "given",
        "detached": False,
        "moves_reference": False,
        "whole_groups": False,
        "prompts": "given",
        "metrics": (),
    },
    asks={"loss": ALL_WORDS, "advantages": ALL_WORDS},
    optional=True,
    scope="feedback",
)

rewards: Registry[Reward] = Registry(
    "reward",
    "How good an answer is.",
    wiring=("open_run",),
    calls={
        ("answer",): {"per_step": False, "compares": False},
        ("answer", "other"): {"per_step": False, "compares": True},
    },
    methods=("__call__",),
    facts={"per_step": False, "compares": False},
    optional=True,
    scope="feedback",
)
