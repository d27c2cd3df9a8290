"""Stand-ins for the trained models that rewards open: numbers that follow from letters."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ablatio.model.rl.answers import Answer


class SampleReward:
    """A reward model that counts letters, those of its folder's name too: of an answer, or up to the end of a step."""

    def __init__(self, path: str) -> None:
        self.more = len(path)

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Reward of each answer: (N,)."""
        return torch.tensor([(len(a.text) + self.more) / 9 for a in answers])

    def at(self, answers: Sequence[Answer], ends: Sequence[Sequence[int]]) -> list[Tensor]:
        """Rewards at these numbers of characters of each answer."""
        return [(torch.tensor(found) + self.more) / 9 for found in ends]


class SampleModel:
    """A language model whose log-probabilities follow from the letters of its folder, a question and an answer."""

    def __init__(self, path: str) -> None:
        self.path = path

    def logprobs(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | question): (N,)."""
        texts = [f"{self.path}|{q}|{a}" for q, a in zip(questions, answers, strict=True)]
        return torch.tensor([-(zlib.crc32(text.encode()) % 997) / 100 for text in texts])
