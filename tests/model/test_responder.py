"""Likelihoods and generated texts against plain loops over the model's logits."""

import math

import pytest
import torch

from ablatio.data.items import Generation, Likelihood
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.evaluation.responder import Responder, until
from ablatio.model.example import Example
from ablatio.registry import kinds
from ablatio.testing import tiny_models

TOKENIZER = kinds.tokenizers.build("bytes")
LENGTH = 48
ASKED = [
    Likelihood("The people", " of"), Likelihood("", "A whole text, from its beginning."), Likelihood("a", "b"),
    Likelihood("A longer context than the others have, with Größe", " and more"), Likelihood("The people", " gather"),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(architecture: str = "causal", seed: int = 0):
    entry = kinds.architectures[architecture]
    config = tiny_models.config(entry, max_len=LENGTH)
    net = build_model(config, TOKENIZER.vocab_size, TOKENIZER.eos, seed=seed).eval()
    with torch.no_grad():
        net.lm_head.weight.mul_(8)  # probabilities that differ clearly between tokens
    return net


def ids(text: str) -> list[int]:
    return [*map(int, TOKENIZER.encode([text])[0])]


@torch.no_grad()
def by_loop(net, context: list[int], continuation: list[int]) -> list[float]:
    """Log-probability of each token, from one pass for each token."""
    found, row = [], list(context)
    for token in continuation:
        logits = net(torch.tensor([row]))[0, -1].double()
        found.append(float(logits.log_softmax(-1)[token]))
        row.append(token)
    return found


def test_likelihoods_are_those_of_a_loop_over_the_tokens() -> None:
    net = model_of()
    for asked, found in zip(ASKED[:3], Responder(net, TOKENIZER, LENGTH)(ASKED[:3]), strict=True):
        expected = by_loop(net, [TOKENIZER.eos, *ids(asked.context)], ids(asked.continuation))
        assert found.logps == pytest.approx(expected, abs=1e-4)
        assert found.bytes == len(asked.continuation.encode())
        assert found.logp == pytest.approx(sum(expected), abs=1e-3)


@pytest.mark.parametrize("architecture", ["prefix", "encoder_decoder"])
@torch.no_grad()
def test_a_context_is_the_source_of_models_that_have_one(architecture: str) -> None:
    net = model_of(architecture)
    for asked, found in zip(ASKED, Responder(net, TOKENIZER, LENGTH)(ASKED), strict=True):
        source, target = [TOKENIZER.eos, *ids(asked.context)], ids(asked.continuation)
        source = source[-(LENGTH + 1 - len(target)) :]
        example = Example(
            torch.tensor([[net.eos, *target[:-1]]]), torch.tensor([target]), source=torch.tensor([source])
        )
        expected = net.token_losses(example)[0]
        assert torch.tensor(found.logps).numpy() == pytest.approx(-expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("architecture", ["causal", "prefix", "encoder_decoder"])
def test_responses_depend_on_their_request_alone(architecture: str) -> None:
    """Not on the batch size, the order, or the other requests."""
    net = model_of(architecture)
    asked = [*ASKED, Generation("The people", tokens=6), Generation("b", tokens=6, samples=3, temperature=1.0)]
    together = Responder(net, TOKENIZER, LENGTH, rows=64)(asked)
    back = Responder(net, TOKENIZER, LENGTH, rows=2)(asked[::-1])[::-1]
    alone = [Responder(net, TOKENIZER, LENGTH, rows=1)([request])[0] for request in asked]
    for first, second, third in zip(together, back, alone, strict=True):
        assert first.logps == pytest.approx(second.logps, abs=1e-4)
        assert first.logps == pytest.approx(third.logps, abs=1e-4)
        assert first.texts == second.texts == third.texts


def test_a_long_context_loses_its_beginning_and_a_long_text_is_read_in_rows() -> None:
    net, respond = model_of(), Responder(model_of(), TOKENIZER, 12)
    context, text = "0123456789abcdef", "a text of more than twelve bytes"
    cut, whole = respond([Likelihood(context, "xyz"), Likelihood("", text)])
    assert cut.logps == pytest.approx(by_loop(net, ids(context)[-10:], ids("xyz")), abs=1e-4)
    tokens, expected = [TOKENIZER.eos, *ids(text)], list[float]()
    for first in range(0, len(tokens) - 1, 12):
        expected += by_loop(net, tokens[first : first + 1], tokens[first + 1 : first + 13])
    assert whole.logps == pytest.approx(expected, abs=1e-4)


def test_prompts_keep_half_of_the_row_and_what_is_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    net, length = model_of(), 12
    respond = Responder(net, TOKENIZER, length)
    # (prompt, tokens asked for, tokens of the prompt that are read, tokens of the answer); the first has a start token.
    for prompt, tokens, read, room in (("abc", 4, 4, 4), ("abc", 256, 4, 8), ("0123456789abcdef", 256, 6, 6),
                                       ("0123456789abcdef", 2, 10, 2)):  # fmt: skip
        row = [TOKENIZER.eos, *ids(prompt)][-read:]
        expected = TOKENIZER.decode(generate(net, [row], room, Sampling(temperature=0), TOKENIZER.eos)[0])
        caplog.clear()
        assert respond([Generation(prompt, stop=(), tokens=tokens)])[0].texts == (expected,), prompt
        told = "1 of 1 prompts do not fit into rows of 12 tokens (model.max_len) together with their answers"
        assert (told in caplog.text) == (len(prompt) > 3)
    respond([Likelihood("0123456789abcdef", "xyz"), Likelihood("abc", "xyz"), Likelihood("", "a longer text" * 3)])
    assert "1 of 3 prompts do not fit" in caplog.text and "the longest has 16 characters" in caplog.text


@pytest.mark.parametrize("decode", [None, Sampling(temperature=0)])
def test_answers_whose_stop_text_never_comes_are_told(decode: object, caplog: pytest.LogCaptureFixture) -> None:
    net = model_of()
    respond = Responder(net, TOKENIZER, LENGTH, decode=decode)
    (plain,) = respond([Generation("The people", stop=(), tokens=6)])[0].texts
    assert not caplog.text and len(plain) > 2
    stopped, open_ = Generation("The people", stop=(plain[2], "!!"), tokens=6), Generation("b", stop=("!!",), tokens=6)
    assert respond([stopped, open_])[0].texts == (plain[: plain.index(plain[2])],)
    told = "no stop text ('!!') came in 1 of 2 answers: they are scored with all tokens that were allowed"
    assert caplog.text.count("no stop text") == 1 and told in caplog.text
    caplog.clear()
    respond([stopped])
    assert not caplog.text


def test_greedy_texts_are_those_of_generate_and_greedy_continuations_are_recognized() -> None:
    net = model_of()
    respond = Responder(net, TOKENIZER, LENGTH)
    prompt = [TOKENIZER.eos, *ids("The people")]
    expected = TOKENIZER.decode(generate(net, [prompt], 6, Sampling(temperature=0), TOKENIZER.eos)[0])
    assert respond([Generation("The people", stop=(), tokens=6)])[0].texts == (expected,)
    best = int(net(torch.tensor([prompt]))[0, -1].argmax())
    other = next(i for i in range(97, 120) if i != best)
    found = respond([Likelihood("The people", TOKENIZER.decode([i])) for i in (best, other)])
    if best < 128:  # a byte that is a character by itself
        assert [r.greedy for r in found] == [True, False]
    assert not found[1].greedy


@torch.no_grad()
def test_samples_follow_the_distribution() -> None:
    """First bytes of many samples against the probabilities: chi-squared within 5 standard deviations."""
    net, samples = model_of(seed=3), 2000
    texts = Responder(net, TOKENIZER, LENGTH, rows=500)(
        [Generation("q", stop=(), tokens=1, samples=samples, temperature=1.0)]
    )[0].texts
    p = net(torch.tensor([[TOKENIZER.eos, *ids("q")]]))[0, -1].double().softmax(-1)[:128]  # ASCII: whole characters
    counts = torch.tensor([sum(t == chr(i) for t in texts) for i in range(128)], dtype=torch.float64)
    expected = samples * p
    kept = expected > 5
    chi = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert abs(chi - kept.sum()) < 5 * math.sqrt(2 * kept.sum())


def test_texts_end_at_the_first_stop_text() -> None:
    assert [until("one\ntwo##", stops) for stops in (("\n",), ("##", "two"), ("none",), ("",))] == [
        "one", "one\n", "one\ntwo##", "one\ntwo##",
    ]  # fmt: skip


def test_an_encoder_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"(?s)is an encoder.*try: a run with architecture=causal"):
        Responder(model_of("encoder"), TOKENIZER, LENGTH)
