"""A trained model that another run asks: it continues texts, or gives the log-probability of texts."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablatio.data.chat import Template, write
from ablatio.data.data_files import content_digest, readable
from ablatio.data.types import Message, Tokenizer, start_id
from ablatio.errors import UserError
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.registry import kinds
from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.restore import RestoredModel, context_of, restore_model
from ablatio.training.run_folder import CHECKPOINTS, TOKENIZER, read_run, refuse_living

SCORED_TOGETHER = 16  # texts per forward pass
WRITTEN_TOGETHER = 32  # prompts that are continued together


class FrozenModel:
    """The model of a run folder, with the weights of its newest checkpoint; loaded when it is first asked."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    @cached_property
    def digest(self) -> str:
        """A sha256 of weights and tokenizer: equal models write equal texts for a seed."""
        total = hashlib.sha256()
        weights = (self.folder / CHECKPOINTS).glob(f"step-{self.step:08d}*.model.safetensors")
        for file in (*sorted(weights), self.folder / TOKENIZER):
            with readable(file):
                total.update(content_digest(file).encode())
        return total.hexdigest()

    @cached_property
    def _restored(self) -> RestoredModel:
        return restore_model(self.folder, self.step)

    @cached_property
    def model(self) -> LanguageModel:
        """The language model, without gradients."""
        return self._restored.model.requires_grad_(False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return self._restored.tokenizer

    @cached_property
    def template(self) -> Template | None:
        """How conversations are written for the model; None if it was trained on plain text."""
        return _template_of(self._restored.config)

    @torch.no_grad()
    def logprobs(self, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | question) in nats, the sum over the answer's tokens: N questions and answers -> (N,).

        A question is a turn of the user if the model was trained on conversations, else the beginning of a text.
        """
        heads = self._asked(questions)
        tails = [list(map(int, ids)) for ids in self.tokenizer.encode(list(answers))]
        rows = [(head, tail) for head, tail in zip(heads, tails, strict=True)]
        found = [self._logprobs(rows[i : i + SCORED_TOGETHER]) for i in range(0, len(rows), SCORED_TOGETHER)]
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

    def longest(self, tokens: int) -> int:
        """Number of prompt tokens that leave room for `tokens` new ones."""
        return max(1, int(self._restored.config["model"]["max_len"]) - tokens - 1)

    def size(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer.encode([text])[0])

    def __call__(self, prompts: Sequence[str], tokens: int, temperature: float, seed: int) -> list[str]:
        """Continue each prompt by up to `tokens` tokens; the end of a prompt that is too long is used."""
        tokenizer, found = self.tokenizer, list[str]()
        room, start = self.longest(tokens), start_id(tokenizer)
        for first in range(0, len(prompts), WRITTEN_TOGETHER):
            together = tokenizer.encode(prompts[first : first + WRITTEN_TOGETHER])
            rows = [[start, *map(int, ids)][-room - 1 :] for ids in together]
            sampling = Sampling(temperature, top_p=1.0 if temperature == 0 else 0.95, seed=seed + first)
            for new in generate(self.model, rows, tokens, sampling, stop=tokenizer.eos):
                new = new[: new.index(start)] if start in new else new
                found.append(tokenizer.decode([i for i in new if i < tokenizer.vocab_size]))
        return found


def open_model(path: str, key: str) -> FrozenModel:
    """Open the model of the run in the folder `path`; `key`: the setting that names it, for errors.

    Raises UserError if the folder is no run or has no checkpoint, if a process trains it, or if the model cannot
    continue a text.
    """
    if not path:
        raise UserError(
            f"{key} is empty: expected the folder of a run whose model is asked\n"
            f"    try: {key}=runs/NAME, after ablatio train name=NAME"
        )
    folder = Path(path).expanduser()
    architecture = read_run(folder)["architecture"]["name"]
    refuse_living(folder, key)
    if "next tokens" not in kinds.architectures[architecture].facts["accepts"]:
        raise UserError(
            f"{key}: the model of {path} has architecture={architecture} and cannot continue a text\n"
            "    try: a run with architecture=causal"
        )
    step = Checkpoints(folder / CHECKPOINTS).latest()
    if step is None:
        raise UserError(f"{key}: {folder} has no checkpoint yet\n    try: ablatio train resume={folder}")
    return FrozenModel(folder, step)


def _template_of(config: Mapping[str, Any]) -> Template | None:
    """Return the template that a run writes conversations with; None if its task trains on plain text."""
    task: Any = kinds.tasks.target(config["task"]["name"])
    return context_of(config).template if task.uses_template(config) else None
