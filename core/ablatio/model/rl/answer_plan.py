"""How a model reads the answers of a rollout: everything that shapes depend on, found on the CPU."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.transfer import to_device


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How B answers of at most T tokens are read.

    prompts    (G, P) the distinct prompts without their last token, padded on the left; it is read with the answer
    lengths    (G,) of these
    parents    (B,) prompt of each answer
    kept       (N,) places of the N answer tokens in B * T
    most       tokens of the longest answer
    longest    tokens of the longest prompt with its answer, without the last one, which is not read
    shortest   tokens of the shortest of `prompts`
    read       tokens that are read if each prompt is read once; else, with each answer: `read_apart`
    """

    prompts: Tensor
    lengths: Tensor
    parents: Tensor
    kept: Tensor
    most: int
    longest: int
    shortest: int
    read: int
    read_apart: int

    @classmethod
    def of(cls, rollout: Rollout) -> "AnswerPlan":
        """The plan for a rollout whose tensors are on the CPU."""
        length, answer_length = rollout.prompt_length, rollout.mask.sum(1).long()  # (B,) each
        width = int(length.max())
        distinct, parents = torch.unique(
            torch.cat([length[:, None], rollout.prompts[:, rollout.prompts.shape[1] - width :]], dim=1),
            dim=0, return_inverse=True,
        )  # fmt: skip
        lengths, tokens = distinct[:, 0] - 1, int(answer_length.sum())
        return cls(
            distinct[:, 1:-1], lengths, parents, rollout.mask.flatten().nonzero()[:, 0],
            most=int(answer_length.max()), longest=int((length + answer_length).max()) - 1,
            shortest=int(lengths.min()), read=int(lengths.sum()) + tokens,
            read_apart=int(length.sum()) + tokens - len(length),
        )  # fmt: skip

    def to(self, device: torch.device) -> "AnswerPlan":
        """The plan with its tensors on a device; nothing waits for them."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: to_device(t, device) for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **moved)

    def tokens_read(self, model: Any) -> int:
        """Number of tokens that pass through a model."""
        return self.read if model.shared_prefix else self.read_apart


def plan_of(rollout: Rollout) -> AnswerPlan:
    """The plan for a rollout on any device, which is waited for."""
    return AnswerPlan.of(rollout.cpu()).to(rollout.mask.device)
