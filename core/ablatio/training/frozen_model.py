"""A trained model that another run asks: it writes answers, or gives the log-probability of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.data.chat import Template, write
from ablatio.data.types import Message, Tokenizer, start_id
from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.registry import kinds
from ablatio.training.restore import context_of, restore_model
from ablatio.training.run_folder import refuse_living

AT_ONCE = 16  # texts per forward pass


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """The model of a run, with its tokenizer; template: how it was asked, None if it was trained on plain text."""

    model: LanguageModel
    tokenizer: Tokenizer
    template: Template | None

    @torch.no_grad()
    def logprobs(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | question) in nats, the sum over the answer's tokens: N questions and answers -> (N,).

        A question is a turn of the user if the model was trained on conversations, else the beginning of a text.
        """
        heads = self._asked(questions)
        tails = [list(map(int, ids)) for ids in self.tokenizer.encode(list(answers))]
        rows = [(head, tail) for head, tail in zip(heads, tails, strict=True)]
        found = [self._logprobs(rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
        return torch.cat(found) if found else torch.zeros(0)

    def _asked(self, questions: Sequence[str]) -> list[list[int]]:
        if self.template is None:
            start = start_id(self.tokenizer)
            return [[start, *map(int, ids)] for ids in self.tokenizer.encode(list(questions))]
        turns = [(Message("user", text),) for text in questions]
        return [written.ids.tolist() for written in write(self.tokenizer, self.template, turns, answering=True)]

    def _logprobs(self, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        longest = max(len(head) + len(tail) for head, tail in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        weights = torch.zeros(len(rows), longest)
        for i, (head, tail) in enumerate(rows):
            tokens[i, : len(head) + len(tail)] = torch.tensor([*head, *tail])
            weights[i, len(head) : len(head) + len(tail)] = 1.0
        example = Example(tokens[:, :-1], tokens[:, 1:])
        return -(self.model.token_losses(example).float() * weights[:, 1:]).sum(1)


def open_model(path: str, key: str) -> FrozenModel:
    """Load the model of the run in the folder `path`; `key`: the setting that names it, for errors.

    Raises UserError if the folder is no run, if a process trains it, or if the model cannot continue a text.
    """
    refuse_living(Path(path), key)
    found = restore_model(Path(path))
    architecture = found.config["architecture"]["name"]
    if "next tokens" not in kinds.architectures[architecture].facts["accepts"]:
        raise UserError(
            f"{key}: the model of {path} has architecture={architecture} and cannot continue a text\n"
            "    try: a run with architecture=causal"
        )
    return FrozenModel(found.model.requires_grad_(False), found.tokenizer, _template_of(found.config))


def _template_of(config: Mapping[str, Any]) -> Template | None:
    """Return the template that a run writes conversations with; None if its task trains on plain text."""
    task: Any = kinds.tasks.target(config["task"]["name"])
    return context_of(config).template if task.uses_template(config) else None
