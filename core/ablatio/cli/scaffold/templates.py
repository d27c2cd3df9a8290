"""Templates of `ablatio new-plugin`: for some kinds a complete part, a test and an experiment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """The texts that differ between kinds; $package in them is replaced.

    module    name of the module
    imports   imports of the test
    part      source of the module
    test      source of the test
    defaults  defaults list of the experiment
    tries     overrides of the sweep in the README
    """

    module: str
    imports: str
    part: str
    test: str
    defaults: str
    tries: str


NORM = Start(
    module="norms",
    imports="import torch\n\nfrom ablatio import norms",
    part='''\
"""A norm to start from: replace its name, formula and paper by yours."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, norms


@norms.register("$package", paper="arXiv:1803.01814")
class MeanAbsoluteNorm(nn.Module):
    """y = g * x / (mean|x| + eps), the mean over the last axis.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, eps: Annotated[float, Positive] = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = x / (x.abs().mean(-1, keepdim=True) + self.eps)
        return y if self.weight is None else y * self.weight
''',
    test="""\
def test_output_has_mean_absolute_value_one():
    y = norms.build("$package", d_model=8)(torch.linspace(-3, 5, 8))
    torch.testing.assert_close(y.abs().mean(), torch.tensor(1.0))
""",
    defaults="""\
  - override /norm: $package
""",
    tries="norm=rmsnorm,$package",
)

ALIGNMENT = Start(
    module="alignments",
    imports="import torch\n\nfrom ablatio import alignments",
    part='''\
"""A preference method to start from: replace its name, formula and paper by yours."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, alignments


@alignments.register("$package", paper="arXiv:2305.10425")
class Margin:
    """L = max(0, delta - (log p(w) / |w| - log p(l) / |l|)): w the better answer, l the worse one.

    The parameters of `loss` name its inputs (see ablatio.registry.kinds.alignment_inputs); with `ref_chosen` among
    them, the run would have a reference model.
    """

    data = "pairs"
    metrics = ("train/reward_margin",)

    def __init__(self, *, delta: Annotated[float, Positive, "margin in nats per token"] = 1.0) -> None:
        self.delta = delta

    def loss(
        self, chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        margin = chosen / chosen_length.clamp(min=1) - rejected / rejected_length.clamp(min=1)  # (B,)
        return torch.relu(self.delta - margin).mean(), {"train/reward_margin": margin.detach().mean()}
''',
    test="""\
def test_loss_is_zero_beyond_the_margin():
    chosen, rejected, lengths = torch.tensor([-4.0, -9.0]), torch.tensor([-12.0, -10.0]), torch.tensor([4, 4])
    loss, _ = alignments.build("$package", {"delta": 1.0}).loss(chosen, rejected, lengths, lengths)
    torch.testing.assert_close(loss, torch.tensor((0 + 0.75) / 2))
""",
    defaults="""\
  - override /task: preference
  - override /source: sentiment
  - override /alignment: $package
""",
    tries="task=preference source=sentiment alignment=dpo,$package",
)

PEFT = Start(
    module="pefts",
    imports="import torch\n\nfrom ablatio import pefts",
    part='''\
"""An adapter to start from: replace its name, formula and paper by yours."""

from typing import Any

import torch
from torch import Tensor, nn

from ablatio import pefts
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, widths


class Gain(MatrixAdapter):
    """diag(1 + g) W: the adapted matrix, which is all that an adapter defines; merging follows from it."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(out))

    def matrix(self, weight: Tensor) -> Tensor:
        return (1 + self.gain)[:, None] * weight


@pefts.register("$package", paper="arXiv:2205.05638")
class OutputGain(LayerPeft):
    """y = (1 + g) * (W x) + b: W and b are frozen; g (out,) starts at zero, so that the model starts as the base."""

    def __init__(self, *, targets: Targets = ("q_proj", "v_proj")) -> None:
        super().__init__(targets)

    def adapter(self, layer: Any, path: str) -> Gain:
        return Gain(widths(layer)[0])
''',
    test="""\
def test_only_one_gain_per_output_is_trained():
    model = torch.nn.Sequential()
    model.add_module("q_proj", torch.nn.Linear(3, 5))
    pefts.build("$package", {"targets": ["q_proj"]}).apply(model, 0)
    assert [tuple(p.shape) for p in model.parameters() if p.requires_grad] == [(5,)]
""",
    defaults="""\
  - override /peft: $package
""",
    tries="peft=lora,$package",
)

REWARD = Start(
    module="rewards",
    imports="from ablatio import rewards\nfrom ablatio.model.rl.answers import Answer",
    part='''\
"""A reward to start from, a function of one answer: replace its name, formula and paper by yours."""

from typing import Annotated

from ablatio import Fraction, rewards
from ablatio.model.rl.answers import Answer


@rewards.register("$package", paper="arXiv:2501.12948")
def finished(answer: Answer, *, unfinished: Annotated[float, Fraction, "reward of other answers"] = 0.1) -> float:
    """1 if the answer ends with the end of a sentence, else `unfinished`.

    `answer` has the prompt, the text, the token ids of both, and `truth`, the correct answer if the data has one.
    """
    return 1.0 if answer.text.rstrip().endswith((".", "!", "?")) else unfinished
''',
    test="""\
def test_reward_is_one_for_a_finished_sentence():
    reward = rewards.build("$package", {"unfinished": 0.2})
    assert [reward(Answer("", text)) for text in ("Yes. ", "Yes, and")] == [1.0, 0.2]
""",
    defaults="""\
  - override /task: policy
  - override /source: sentiment
  - override /alignment: grpo
  - override /reward: $package
""",
    tries="task=policy source=sentiment alignment=grpo reward=length,$package",
)

STARTS = {"norm": NORM, "alignment": ALIGNMENT, "peft": PEFT, "reward": REWARD}
