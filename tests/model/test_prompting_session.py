"""A model as text in, text out: counts, scores by full passes, streams, gradients of triggers."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from ablatio import decodes, prompts, tokenizers
from ablatio.errors import UserError
from ablatio.model.prompting.answers import answer_all
from ablatio.model.prompting.gather import run_together
from ablatio.model.prompting.parse import final_answer
from ablatio.model.prompting.session import Session
from ablatio.model.prompting.types import Example, Form, Question
from ablatio.testing import tiny_models
from ablatio.testing.scripted_model import ScriptedModel

SIZES = {"max_len": 128, "tied": False}


@pytest.fixture(scope="module")
def net() -> Any:
    from ablatio.model.build import build_model

    model = build_model(tiny_models.config(**SIZES), 257, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.2, generator=generator)
    return model


def session(net: Any, decode: str = "greedy", **more: Any) -> Session:
    return Session(net, tokenizers.build("bytes"), decodes.build(decode), **{"tokens": 6, **more})


def texts(found: Any) -> list[list[str]]:
    return [[c.text for c in row] for row in found]


def test_tokens_are_counted(net: Any) -> None:
    llm = session(net)
    found = llm.complete(["ab", "c"], samples=1)
    assert llm.usage.calls == 2 and llm.usage.read == 3 + 2  # with the token that opens a document
    assert llm.usage.generated == sum(c.tokens for row in found for c in row) <= 12
    llm.score(["ab"], ["cd"])
    assert llm.usage.read == 5 + 5 and llm.usage.calls == 3


def test_samples_do_not_depend_on_the_batch_or_on_other_calls(net: Any) -> None:
    llm, other = session(net, "sample"), session(net, "sample", rows=3)
    asked = ["one", "two", "three", "two"]
    first = texts(llm.complete(asked, samples=4))
    assert first == texts(other.complete(asked, samples=4))
    again = session(net, "sample")
    again.complete(["unrelated"], samples=2)
    assert texts(again.complete(["three"], samples=4))[0] == first[2]
    assert first[1] != first[3] and len({*first[0]}) > 1  # asked again, other samples come
    assert texts(session(net, "sample", seed=2).complete(asked, samples=4)) != first


def test_a_part_that_does_not_sample_gives_way_when_several_are_drawn(net: Any) -> None:
    llm = session(net)
    assert len({c.text for c in llm.complete(["x"], samples=6)[0]}) > 1
    cold = llm.complete(["x"], samples=3, temperature=1e-4)[0]
    assert {c.text for c in cold} == {session(net).complete(["x"])[0][0].text}


@pytest.mark.parametrize("parts", [{}, {"attention": "gated_deltanet"}, {"position": "alibi"}, {"attention": "mla"}])
def test_answers_to_one_prompt_are_scored_after_reading_it_once(parts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablatio.model.build import build_model
    from ablatio.model.decoding.texts import Texts
    from ablatio.registry.registry import REGISTRIES

    kind, name = next(iter(parts.items()), ("position", "rope"))
    model = build_model(tiny_models.config(REGISTRIES[kind][name], **SIZES), 257, seed=0).eval()
    prompts = ["Is it so?"] * 3 + ["A longer prompt, or not?"] * 4
    answers = [" yes", " no", " perhaps", " a", "", " bcd", " ef"]
    alone = session(model, rows=1).score(prompts, answers)  # one text in a batch: nothing is shared
    read, begin = list[list[str]](), Texts.__init__

    def counted(self: Texts, model: Any, rows: Any) -> None:
        read.append(sorted(map(str, {*map(tuple, rows)})))
        begin(self, model, rows)

    monkeypatch.setattr(Texts, "__init__", counted)
    together = session(model)
    assert together.score(prompts, answers) == pytest.approx(alone, abs=1e-4)
    assert len(read) == 1 and len(read[0]) <= 3  # the empty answer scores the last token of its prompt
    assert together.usage.read == sum(len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True))


def test_scores_are_those_of_a_full_pass(net: Any) -> None:
    llm = session(net)
    asked, answers = ["ab", "a longer one", "ü"], [" yes", "", "é"]
    found = llm.score(asked, answers)
    for prompt, answer, score in zip(asked, answers, found, strict=True):
        ids = torch.tensor(llm.ids([prompt + answer]))
        before = 1 + len(prompt.encode())
        with torch.no_grad():
            log_p = net(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert score == pytest.approx(float(log_p[before - 1 :].sum()), abs=1e-3) or answer == ""


def test_embeddings_are_means_of_hidden_states(net: Any) -> None:
    llm = session(net)
    found = llm.embed(["abc", "a text that is longer"])
    for text, row in zip(["abc", "a text that is longer"], found, strict=True):
        with torch.no_grad():
            states = net.model(torch.tensor(llm.ids([text])))[0]
        np.testing.assert_allclose(row, states.double().mean(0).numpy(), atol=1e-5)


def test_candidates_lower_the_loss_to_first_order(net: Any) -> None:
    """Against the gradient by finite differences of the token's row of the table, for one place."""
    llm, trigger, asked, answers = session(net), "xyz", ["a xyz b", "c xyz d"], [" e", " f"]
    places = llm.token_candidates(asked, trigger, answers, 12)
    assert len(places) == 3 and all(len(texts) == 12 for texts in places)
    for place, texts in enumerate(places):
        assert all(t[:place] == "xyz"[:place] and t[place + 1 :] == "xyz"[place + 1 :] for t in texts)
    losses = [-llm.score([p.replace(trigger, t) for p in asked], answers).sum() for t in (trigger, *places[2])]
    assert min(losses[1:]) < losses[0]
    table, (place,) = net.model.embed_tokens.weight, llm.ids([trigger])
    (ids,) = llm.ids(["a xyz b e"])
    row = torch.tensor([ids])

    def loss(shift: torch.Tensor) -> float:
        seen = net.model.embed_tokens.register_forward_hook(lambda m, i, y: y + shift)
        with torch.no_grad():
            log_p = net(row[:, :-1])[0].double().log_softmax(-1)
        seen.remove()
        return -float(log_p[-2:].gather(1, row[0, -2:, None]).sum())

    from ablatio.model.prompting.triggers import _gradient

    where = ids.index(place[1])
    gradient = _gradient(llm, ids, len(ids) - 2, where, 1)[0]
    direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0))
    step = torch.zeros(1, len(ids) - 1, table.shape[1])
    step[0, where] = 1e-2 * direction
    slope = (loss(step) - loss(-step)) / 2e-2
    assert slope == pytest.approx(float(gradient @ direction), rel=0.05, abs=1e-3)
    with pytest.raises(UserError, match="do not stand in the prompt"):
        llm.token_candidates(["no trigger"], trigger, [" e"], 2)


def test_stop_strings_cut_within_a_token(net: Any) -> None:
    llm = session(net, tokens=20)
    ((plain,),) = llm.complete(["q"])
    place = next(i for i, (a, b) in enumerate(itertools.pairwise(plain.text)) if (a + b) not in plain.text[:i])
    stop = plain.text[place : place + 2]
    ((cut,),) = llm.complete(["q"], stop=[stop, "never"])
    assert cut.text == plain.text[: plain.text.index(stop)]


def test_programs_that_run_together_say_what_they_say_alone(net: Any) -> None:
    """Their calls are batched in the order of the questions; the replies are those of one after another."""
    examples = [Example(f"q{i}", str(i), f"step {i}.\nstep {i + 1}.") for i in range(4)]
    questions = [Question(f"what is {i}?", choices=("a", "b") if i == 2 else ()) for i in range(5)]
    for name, knobs in (("few_shot", {"choice": "both", "order": "similar"}), ("self_consistency", {"draws": 3}),
                        ("least_to_most", {}), ("tree_of_thoughts", {"depth": 2})):  # fmt: skip
        build = {"form": Form(), "parse": final_answer, "verify": None}
        llm, alone = session(net, "sample"), session(net, "sample")
        together = answer_all(prompts.build(name, knobs, **build), llm, examples, questions)
        program = prompts.build(name, knobs, **build)
        one_by_one = [answer_all(program, alone, examples, [q])[0] for q in questions]
        assert [r.text for r in together] == [r.text for r in one_by_one], name
        assert [r.answer for r in together] == [r.answer for r in one_by_one]
        assert llm.usage.generated == alone.usage.generated


def test_calls_of_several_programs_are_one_call() -> None:
    llm = ScriptedModel(lambda prompt, n: prompt[-1])
    found = run_together(
        llm, lambda model, q: model.complete([q])[0][0].text + model.complete([q + "!"])[0][0].text, "abc"
    )
    assert found == ["a!", "b!", "c!"] and len(llm.asked) == 2
    assert [p for p, _ in llm.calls] == ["a", "b", "c", "a!", "b!", "c!"]
    uneven = run_together(
        llm, lambda model, n: [model.complete(["x" * i])[0][0].text for i in range(1, n + 1)], [3, 0, 1]
    )
    assert uneven == [["x"] * 3, [], ["x"]]


def test_the_error_of_the_first_program_that_fails_is_raised() -> None:
    def program(model: Any, number: int) -> float:
        model.complete([str(number)])
        return 1 / (number - 2)

    with pytest.raises(ZeroDivisionError):
        run_together(ScriptedModel(), program, [1, 2, 3])

    def broken(prompt: str, n: int) -> str:
        raise UserError("the model fails")

    with pytest.raises(UserError, match="the model fails"):
        run_together(ScriptedModel(broken), lambda model, q: model.complete([q]), ["a", "b"])
