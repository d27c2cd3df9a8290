"""Jobs for decode parts, and questions for prompt programs, for their suites."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.prompting.parse import final_answer
from ablatio.model.prompting.types import Example, Form, Question
from ablatio.registry.registry import PartSpec
from ablatio.testing import sample_parts, tiny_models
from ablatio.testing.scripted_model import ScriptedModel, hashed

PROMPTS = ([5, 9, 3], [7, 7, 1, 2, 30, 11], [8], [12, 4, 50])
STOPS = (17, 18)
EXAMPLES = tuple(
    Example(f"What is {a} and {b}?", str((a + b) % 3), "\n".join(f"Step {i}." for i in range(1 + a)))
    for a, b in ((1, 2), (3, 1), (2, 2), (4, 3), (0, 5), (2, 3))
)
QUESTIONS = (Question("What is 2 and 9?"), Question("Which one?", choices=("red", "green", "blue")))


@functools.cache
def language_model(seed: int = 0) -> Any:
    """The small model with weights so large that its continuations vary, and two heads for tokens further ahead."""
    net, generator = tiny_models.model(seed=seed, tied=False).eval(), torch.Generator().manual_seed(seed)
    net.model.further.extend(copy.deepcopy(net.model.layers[-1]) for _ in range(2))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.2, generator=generator)
    return net


def job(
    prompts: Sequence[Sequence[int]] = PROMPTS, new_tokens: int = 8, stops: tuple[int, ...] = STOPS, **more: Any
) -> DecodingJob:
    """A job with a second model, a judge and two stop tokens."""
    settings = {"second": language_model(1), "judge": judge, "seed": 3} | more
    return DecodingJob(language_model(), prompts, Ending(new_tokens, stops), **settings)


def judge(row: int, found: Sequence[Sequence[int]]) -> list[float]:
    """Scores of continuations that depend on their tokens."""
    return [hashed(str(ids)) for ids in found]


def program(entry: PartSpec, knobs: Mapping[str, Any] | None = None) -> Any:
    """A prompt program; its verifier's scores depend on both texts."""
    return sample_parts.made(entry, knobs, form=Form(), parse=final_answer, verify=hashed)


def scripted(seed: int = 1) -> ScriptedModel:
    """A model that writes lines of steps, and now and then an answer of a few lines."""

    def says(prompt: str, number: int) -> str:
        lines = [f" line {int(9 * hashed(prompt, str(number), str(i)))}\n" for i in range(1 + int(7 * hashed(prompt)))]
        return "".join(lines) + f"The answer is {int(4 * hashed(prompt, 'answer', str(number)))}.\n\nQ: more"

    return ScriptedModel(says, seed=seed)
