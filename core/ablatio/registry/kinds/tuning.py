"""Kinds of parts that adapt a model: quantization, parameter-efficient tuning, alignment methods and rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.kinds.alignment_inputs import ALL_WORDS
from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ablatio.model.optimizer_step import OptimizerStep
    from ablatio.model.parameter_roles import ParameterInfo
    from ablatio.model.rl.answers import Answer
    from ablatio.model.rl.answers import ReasoningStep as AnswerStep
    from ablatio.registry.kinds.alignment_inputs import Advantages, Metrics


class Quantization(Protocol):
    """Stores the weight matrices of linear layers in few bits.

    Methods:
    apply(model)  replaces the weights by codes, in place; the modules keep their names
    calibrate(model, feed)  optional, called before `apply` in a new run: `feed(n)` runs the model on the first n
                  training batches, while which the method can record the inputs of layers
                  (ablatio.model.quantized.moments_of_inputs).  Without it `apply` makes codes of the same shapes

    Facts:
    bits  bits of a code; 32: nothing is quantized

    Usual knob:
    qat   quantization-aware training: weights keep their precision and are rounded in each forward pass, with
          straight-through gradients
    """

    bits: ClassVar[int]

    def apply(self, model: nn.Module) -> None: ...


class QuantizationMethods(Protocol):
    """Optional methods of a Quantization."""

    def calibrate(self, model: nn.Module, feed: Callable[[int], None]) -> None: ...


class Peft(Protocol):
    """Parameter-efficient tuning: trains a few added weights; the base weights are frozen and stay bitwise the same.

    Methods:
    apply(model, seed)  changes the model in place; afterwards exactly the trainable parameters have `requires_grad`
    prepare(model)      optional, called before `apply`: changes the base itself, as by quantizing it
    rate(info)          optional: factor on the learning rate of a parameter; weight_decay is divided by it, unless the
                        method is marked with `with_fixed_decay` (ablatio.model.parameter_roles)
    before_step(step), after_step(step)  optional, as of a Stabilizer; state must be kept in buffers of the model

    Facts:
    exact            True if the model at step 0 equals the base bitwise, False if only up to rounding
    virtual          True if it adds keys and values of virtual tokens, which the attention must support
    metrics          names of the numbers that its step methods log
    batch_dependent  see Mlp
    reads_gradients  True if `before_step` or `after_step` reads the gradients of weights
    splits_tokens    True if it treats each token by itself
    splits_layers    False if a layer computes with what it makes of other layers
    tensor_parallel  True if its adapters say how they are divided (ablatio.model.peft.adapters.Adapter)
    """

    exact: ClassVar[bool]
    virtual: ClassVar[bool]
    batch_dependent: ClassVar[bool]
    reads_gradients: ClassVar[bool]
    tensor_parallel: ClassVar[bool]

    def apply(self, model: nn.Module, seed: int) -> None: ...


class PeftMethods(Protocol):
    """Optional methods of a Peft."""

    def prepare(self, model: nn.Module) -> None: ...

    def rate(self, info: ParameterInfo) -> float: ...

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]: ...

    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]: ...


class Alignment(Protocol):
    """A pure loss on log-probabilities.  Parameters of its methods are names from alignment_inputs.

    Methods:
    loss(...)        (loss, metrics): the mean loss over the batch, and the numbers to log
    reference_rate(step)  optional, with the fact `moves_reference`: the rate of step `step`

    Facts:
    data             what it is trained on: pairs | rankings | labelled | prompts
    metrics          names of the numbers that `loss` and `advantages` log
    rejected         where the worse answer of a pair comes from: given (in the data) | reference (sampled from the
                     frozen reference for the same prompt)
    detached         True if a factor of the loss gets no gradient (a weight, a clipped ratio)
    moves_reference  True if the reference is updated after each step to rate x policy + (1 - rate) x reference, with
                     rate = `reference_rate(step)`; its log-probabilities can then not be computed in advance
    whole_groups     policy methods: True if all answers to a prompt must be in the same minibatch
    prompts          policy methods: given (by the source) | text (prompts are cut out of documents, and the text that
                     follows is the correct answer)

    A policy method (data = prompts, see PolicyMethod) samples answers and also defines `advantages`:
    advantages(...)  Advantages, computed without gradient from the rewards of one rollout
    group            attribute: answers per prompt
    epochs           attribute: passes over a rollout
    minibatches      attribute: optimizer steps per pass

    Optional attributes and methods of a policy method:
    writer           policy | reference: which model samples the answers; default: policy
    best_of          n: the weights are not trained, and the model's answer is the best of n samples
    observe(kl)      called with the rollout's mean KL to the reference, in nats per answer, before `advantages`
    stops(kl)        True to discard the rest of the rollout; `kl`: KL from the policy that sampled it, nats per token,
                     on the answers of a step before its update
    stop_by          k1 | k3: how that KL is estimated (ablatio.model.rl.kl); default: k3
    stop_drops       True to discard the update of that step, too; default: only those after it
    resample         largest number of rounds in which prompts whose answers all have advantage 0 are replaced; only if
                     `advantages` takes nothing but rewards, mask and max_length
    hardness(logits), least_entropy  difficulty of prompts from the reference's next-token logits, (N, V) -> (N,), and
                     the least difficulty of a prompt that is used; 0: all prompts are used
    state_dict(), load_state_dict(state)  state that must survive a resume
    """

    data: ClassVar[str]
    rejected: ClassVar[str]
    detached: ClassVar[bool]
    moves_reference: ClassVar[bool]
    whole_groups: ClassVar[bool]
    prompts: ClassVar[str]
    metrics: ClassVar[Sequence[str]]
    loss: Callable[..., tuple[Tensor, Metrics]]


class AlignmentMethods(Protocol):
    """Optional methods of an Alignment."""

    def reference_rate(self, step: int) -> float: ...

    def observe(self, kl: float) -> None: ...

    def stops(self, kl: float) -> bool: ...

    def hardness(self, logits: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PolicyMethod(Alignment, Protocol):
    """An Alignment method with data = prompts: it samples answers and learns from their rewards."""

    group: int
    epochs: int
    minibatches: int
    advantages: Callable[..., Advantages]


class Reward(Protocol):
    """Scores answers: N answers (ablatio.model.rl.answers.Answer) -> (N,); higher is better.

    A function part takes one answer and returns its score, or takes two, (answer, other), and returns the probability
    that the first is better; reward=ranking turns such comparisons into scores.

    Wiring:
    open_run    turns the run folder of a reward model into a function of answers -> (N,); `at(answers, ends)` of the
                function gives, for each answer, the rewards at the tokens that end at these numbers of characters
    open_model  open_model(folder, setting) returns the language model of a run: logprobs(questions, answers) -> (N,)

    Methods:
    __call__(answers)  (N,) scores of N answers

    Facts:
    per_step  True if it returns, for each answer, a list of ReasoningSteps in place of one score
    compares  True if it compares the answers to the same prompt, so that all of them must be passed together
    """

    per_step: ClassVar[bool]
    compares: ClassVar[bool]

    def __call__(self, answers: Sequence[Answer]) -> Tensor | list[list[AnswerStep]]: ...


quantizations: Registry[Quantization] = Registry(
    "quantization",
    "In how many bits the weights are stored.",
    contract=(Quantization, QuantizationMethods),
    methods=("apply",),
    facts={"bits": 32},
    default="none",
    scope="tuning",
)

pefts: Registry[Peft] = Registry(
    "peft",
    "Which weights are trained: all, or a few added to a frozen base.",
    contract=(Peft, PeftMethods),
    methods=("apply",),
    facts={
        "exact": True,
        "virtual": False,
        "metrics": (),
        "batch_dependent": False,
        "reads_gradients": False,
        "tensor_parallel": False,
        "splits_tokens": False,
        "splits_layers": True,
    },
    default="none",
    scope="tuning",
)

alignments: Registry[Alignment] = Registry(
    "alignment",
    "How a model is trained on preferences or rewards: a loss on log-probabilities.",
    contract=(Alignment, AlignmentMethods, PolicyMethod),
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
    "How answers are scored.",
    contract=(Reward,),
    wiring=("open_run", "open_model"),
    calls={
        ("answer",): {"per_step": False, "compares": False},
        ("answer", "other"): {"per_step": False, "compares": True},
    },
    methods=("__call__",),
    facts={"per_step": False, "compares": False},
    optional=True,
    scope="feedback",
)
