"""Decode parts: prompts -> continuations, whatever else is in the batch."""

import pytest
import torch

from ablatio.errors import UserError
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, sample_use

KINDS = ("decode",)


def _found(part: PartSpec, job: DecodingJob) -> list[list[Continuation]]:
    with torch.no_grad():
        return [list(continuations) for continuations in sample_parts.made(part)(job)]


def test_continues_each_prompt(part: PartSpec) -> None:
    """At least one continuation of each prompt, best first, within the limits and without what ends it."""
    job = sample_use.job()
    found = _found(part, job)
    assert len(found) == len(job.prompts), f"{checks.label(part)}: {len(found)} results for {len(job.prompts)} prompts"
    for continuations in found:
        assert continuations, f"{checks.label(part)}: no continuation of a prompt"
        scores = [c.score for c in continuations]
        assert scores == sorted(scores, reverse=True), f"{checks.label(part)}: the scores {scores} are not best first"
        for c in continuations:
            assert len(c.ids) <= job.ending.new_tokens, f"{checks.label(part)}: {len(c.ids)} tokens, 8 are allowed"
            assert not {*c.ids} & {*job.ending.stop_ids}, f"{checks.label(part)}: a continuation holds its stop token"
            assert c.finished == ("length" if len(c.ids) == job.ending.new_tokens else "stop"), checks.label(part)
        if part.facts["beams"]:
            texts = [tuple(c.ids) for c in continuations]
            assert len({*texts}) == len(texts), f"{checks.label(part)}: `beams`, and two continuations are equal"


def test_log_probabilities(part: PartSpec) -> None:
    """`logprob` is that of the model, by a pass over the whole text."""
    job = sample_use.job()
    for prompt, continuations in zip(job.prompts, _found(part, job), strict=True):
        for c in continuations:
            if c.finished == "length":
                row = torch.tensor([[*prompt, *c.ids]])
                with torch.no_grad():
                    log_p = job.model(row)[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected = log_p.gather(1, row[0, len(prompt) :, None]).sum()
                checks.near(part, torch.tensor(c.logprob).double(), expected.double(), "logprob", 1e-3)


def test_prompts_do_not_depend_on_the_batch(part: PartSpec) -> None:
    job = sample_use.job()
    together = [[c.ids for c in continuations] for continuations in _found(part, job)]
    alone = [[c.ids for c in _found(part, job.only(row))[0]] for row in range(len(job.prompts))]
    assert together == alone, f"{checks.label(part)}: continuations depend on the other prompts of the batch"


def test_seed(part: PartSpec) -> None:
    """Another seed gives other continuations exactly if the part `samples`."""
    texts = [[[c.ids for c in row] for row in _found(part, sample_use.job(seed=seed))] for seed in (3, 3, 4)]
    assert texts[0] == texts[1], f"{checks.label(part)}: the same job gives different continuations"
    assert (texts[0] != texts[2]) == part.facts["samples"], f"{checks.label(part)}: `samples` is not what it does"


def test_second_model(part: PartSpec) -> None:
    job = sample_use.job(second=None)
    if part.facts["needs_second_model"]:
        with pytest.raises(UserError, match="second model"):
            _found(part, job)
    else:
        assert _found(part, job), f"{checks.label(part)}: no continuation without a second model"


def test_stops_at_strings(part: PartSpec) -> None:
    """The text ends before the first stop string; one that never comes changes nothing."""
    job = sample_use.job()

    def text_of(ids: object) -> str:
        return "".join(f"<{i}>" for i in ids)  # type: ignore[attr-defined]

    plain = _found(part, job)
    never = Ending(8, (17, 18), ("never",), text_of)
    found = _found(part, DecodingJob(job.model, job.prompts, never, job.second, job.judge, job.seed))
    assert [[c.ids for c in row] for row in found] == [[c.ids for c in row] for row in plain], checks.label(part)
    token = next((i for row in plain for i in row[0].ids[1:]), None)
    strings = Ending(8, (17, 18), (f"<{token}>",), text_of)
    for row in _found(part, DecodingJob(job.model, job.prompts, strings, job.second, job.judge, job.seed)):
        for c in row:
            assert token not in c.ids and c.text == text_of(c.ids), f"{checks.label(part)}: holds a stop string"


def test_only_choices(part: PartSpec) -> None:
    """Continuations are among the given choices, whatever the model prefers."""
    choices = ((5, 6), (5, 7, 8), (9,))
    job = sample_use.job()
    ending = Ending(8, (17,), choices=choices)
    for row in _found(part, DecodingJob(job.model, job.prompts, ending, job.second, job.judge, job.seed)):
        assert all(tuple(c.ids) in choices for c in row), f"{checks.label(part)}: {row} is none of {choices}"


def test_no_new_tokens(part: PartSpec) -> None:
    found = _found(part, sample_use.job(new_tokens=0))
    assert all(c.ids == [] and c.logprob == 0 for row in found for c in row), checks.label(part)
