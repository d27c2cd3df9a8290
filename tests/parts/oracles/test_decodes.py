"""Decode parts against transformers' generate on the same weights, and against formulas and counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.decoding import EOS, ids, job, prompts, random_model

from ablatio import decodes
from ablatio.errors import UserError
from ablatio.interop.families import family_of
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models


@pytest.fixture(scope="module")
def net() -> Any:
    return random_model(0)


@pytest.fixture(scope="module")
def amateur() -> Any:
    return random_model(1)


@pytest.fixture(scope="module")
def theirs(net: Any) -> Any:
    """The same weights as transformers' own class."""
    import transformers

    family = family_of(tiny_models.config(tied=False), tiny_models.VOCAB, EOS)
    assert family is not None
    settings = {k: v for k, v in family.config_json().items() if k != "architectures"}
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(family.to_native(net.state_dict()))
    model.generation_config = transformers.GenerationConfig(eos_token_id=EOS, pad_token_id=EOS, bos_token_id=EOS)
    return model.eval()


def generated(theirs: Any, rows: list[list[int]], **settings: Any) -> list[list[int]]:
    """transformers' continuations of a batch that is padded on the left, up to their end."""
    width = max(map(len, rows))
    ids = torch.tensor([[EOS] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    found = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, **settings)[:, width:].tolist()
    return [r[: r.index(EOS)] if EOS in r else r for r in found]


@pytest.mark.oracle("decode=greedy", "transformers' generate(do_sample=False), token by token")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ours", "their"),
    [
        ({}, {}),
        ({"repetition": 1.3}, {"repetition_penalty": 1.3}),
        ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
        ({"repetition": 0.7, "no_repeat_ngram": 1}, {"repetition_penalty": 0.7, "no_repeat_ngram_size": 1}),
    ],
)
def test_greedy(net: Any, theirs: Any, seed: int, ours: dict[str, Any], their: dict[str, Any]) -> None:
    rows = prompts(seed)
    found = ids(decodes.build("greedy", ours)(job(net, rows)))
    if "repetition" in ours:  # their penalty also falls on the padding's id, so each prompt is continued alone
        assert found == [generated(theirs, [row], do_sample=False, **their)[0] for row in rows]
    else:
        assert found == generated(theirs, rows, do_sample=False, **their)


@pytest.mark.oracle("decode=sample", "transformers' generate(do_sample=True) with the same random numbers")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("ours", "their"),
    [
        ({}, {}),
        ({"temperature": 1.7, "top_k": 5}, {"temperature": 1.7, "top_k": 5}),
        ({"top_p": 0.6, "temperature": 0.9}, {"top_p": 0.6, "temperature": 0.9}),
        ({"min_p": 0.2}, {"min_p": 0.2}),
        ({"typical": 0.5}, {"typical_p": 0.5}),
        (
            {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical": 0.9, "repetition": 1.1},
            {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.1},
        ),
    ],
)
def test_sample(net: Any, theirs: Any, seed: int, ours: dict[str, Any], their: dict[str, Any]) -> None:
    rows = prompts(seed)
    part = decodes.build("sample", ours)
    together = ids(part(job(net, rows, seed=seed)))
    for i, row in enumerate(rows):
        stream = job(net, [row], seed=seed, streams=[i])
        assert ids(part(stream)) == [together[i]]  # whatever else is in the batch
        with torch.random.fork_rng():
            torch.manual_seed(stream.generator(0).initial_seed())
            assert together[i] == generated(theirs, [row], do_sample=True, **{"top_k": 0, **their})[0]


@pytest.mark.oracle("decode=beam", "transformers' generate(num_beams=n), all continuations and their scores")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("ours", "their"),
    [
        ({"width": 4}, {"num_beams": 4}),
        ({"width": 3, "stop": "first"}, {"num_beams": 3, "early_stopping": True}),
        (
            {"width": 3, "stop": "never", "length_penalty": 2.0},
            {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        ),
        ({"width": 5, "length_penalty": -0.5}, {"num_beams": 5, "length_penalty": -0.5}),
        ({"width": 2, "no_repeat_ngram": 2}, {"num_beams": 2, "no_repeat_ngram_size": 2}),
        ({"width": 1}, {"num_beams": 1, "do_sample": False}),
    ],
)
def test_beam(net: Any, theirs: Any, seed: int, ours: dict[str, Any], their: dict[str, Any]) -> None:
    rows = prompts(seed)
    found = decodes.build("beam", ours)(job(net, rows))
    if their["num_beams"] == 1:
        assert ids(found) == generated(theirs, rows, **their)
        return
    n = their["num_beams"]
    expected = generated(theirs, rows, num_return_sequences=n, **their)
    assert [c.ids for continuations in found for c in continuations] == expected
    width = max(map(len, rows))
    padded = torch.tensor([[EOS] * (width - len(r)) + r for r in rows])
    scores = theirs.generate(
        padded, attention_mask=(padded != EOS).long(), max_new_tokens=12, output_scores=True, num_return_sequences=n,
        return_dict_in_generate=True, **their,
    ).sequences_scores  # fmt: skip
    ours_scores = torch.tensor([c.score for continuations in found for c in continuations])
    torch.testing.assert_close(ours_scores, scores, atol=1e-4, rtol=1e-4)


def logprob(net: Any, prompt: list[int], found: Continuation) -> float:
    """Log-probability of a continuation by a pass without a cache."""
    row = [*prompt, *found.ids, *([EOS] if found.finished == "stop" else [])]
    with torch.no_grad():
        log_p = net(torch.tensor([row]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert found.tokens == len(log_p)
    return float(log_p.gather(1, torch.tensor(row[len(prompt) :])[:, None]).sum())


@pytest.mark.parametrize("name", ["greedy", "sample", "beam", "contrastive", "contrastive_search", "speculative"])
def test_log_probabilities_are_those_of_the_model(net: Any, amateur: Any, name: str) -> None:
    rows = prompts(5)
    for row, found in zip(rows, decodes.build(name)(job(net, rows, second=amateur)), strict=True):
        for continuation in found:
            assert continuation.logprob == pytest.approx(logprob(net, row, continuation), abs=1e-3)


@pytest.mark.oracle("decode=contrastive", "argmax of log p - log q over the plausible tokens, without a cache")
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.9])
def test_contrastive_decoding_follows_its_formula(net: Any, amateur: Any, alpha: float) -> None:
    part = decodes.build("contrastive", {"alpha": alpha, "amateur_temperature": 0.5, "width": 1})
    for row in prompts(2):
        text = [*row]
        for _ in range(8):
            with torch.no_grad():
                p = net(torch.tensor([text]))[0, -1].softmax(-1)
                q = (amateur(torch.tensor([text]))[0, -1] / 0.5).softmax(-1)
            score = torch.where(p >= alpha * p.max(), p / q, 0.0)
            text.append(int(score.argmax()))
            if text[-1] == EOS:
                break
        expected = [i for i in text[len(row) :] if i != EOS]
        assert ids(part(job(net, [row], 8, second=amateur))) == [expected]


def test_contrastive_decoding_against_a_model_that_knows_nothing_is_beam_search(net: Any) -> None:
    uniform = random_model(3)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    rows = prompts(3)
    contrast = decodes.build("contrastive", {"alpha": 0.0, "width": 3, "length_penalty": 1.0})(
        job(net, rows, second=uniform)
    )
    assert ids(contrast) == ids(decodes.build("beam", {"width": 3})(job(net, rows)))


@pytest.mark.oracle("decode=contrastive_search", "the formula, with full passes for each candidate")
def test_contrastive_search_follows_its_formula(net: Any) -> None:
    part = decodes.build("contrastive_search", {"alpha": 0.55, "top_k": 3})

    def states(text: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return net.model(torch.tensor([text]))[0].double()

    for row in prompts(4):
        text = [*row]
        for _ in range(6):
            with torch.no_grad():
                p = net(torch.tensor([text]))[0, -1].softmax(-1)
            scored = []
            for v in p.topk(3).indices.tolist():
                h = states([*text, v])
                cosine = torch.nn.functional.cosine_similarity(h[-1:], h[:-1]).max()
                scored.append((0.45 * float(p[v]) - 0.55 * float(cosine), v))
            text.append(max(scored)[1])
            if text[-1] == EOS:
                break
        assert ids(part(job(net, [row], 6))) == [[i for i in text[len(row) :] if i != EOS]]


def test_contrastive_search_without_a_penalty_is_greedy(net: Any) -> None:
    rows = prompts(6)
    found = decodes.build("contrastive_search", {"alpha": 0.0})(job(net, rows))
    assert ids(found) == ids(decodes.build("greedy")(job(net, rows)))


class Bigrams(torch.nn.Module):
    """A model whose next token depends on the last one alone: fast enough for thousands of texts."""

    vocab_size = 5

    def __init__(self, seed: int) -> None:
        super().__init__()
        table = 1.5 * torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        self.lm_head = torch.nn.Linear(5, 5, bias=False)
        self.lm_head.weight = torch.nn.Parameter(table.T)
        self.model = self  # the stack: states are one-hot vectors
        self.max_len = 100

    def reaches(self, tokens: int) -> bool:
        return tokens <= self.max_len

    def forward(self, tokens: torch.Tensor, segments: Any, cache: Any, memory: Any = None) -> torch.Tensor:
        cache.advance(tokens.shape[1])
        return torch.nn.functional.one_hot(tokens, 5).float()

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.lm_head(states)
        return found

    def read(self, tokens: torch.Tensor, segments: Any, cache: Any) -> torch.Tensor:
        return self.logits(self(tokens, segments, cache))[:, -1]

    def extend(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        return self.read(tokens, None, cache)


@pytest.mark.oracle("decode=speculative", "chi-square test of the counts of all texts of three tokens")
@pytest.mark.parametrize("settings", [{"draft": 1}, {"draft": 3, "temperature": 0.7, "top_k": 4}])
def test_speculative_decoding_has_the_distribution_of_sampling(settings: dict[str, Any]) -> None:
    model, drafter, count = Bigrams(0), Bigrams(1), 800
    draws = DecodingJob(model, [[2]] * count, Ending(3), second=drafter, seed=11)
    texts = torch.tensor(ids(decodes.build("speculative", settings)(draws)))  # (count, 3)
    processors = LogitsProcessors(settings.get("temperature", 1.0), settings.get("top_k", 0))
    p = processors.warp(model.lm_head.weight.T.detach()).double().softmax(-1)  # (5, 5): p[a, b] of b after a
    joint = (p[2][:, None, None] * p[:, :, None] * p[None]).flatten()
    counts = (texts @ torch.tensor([25, 5, 1])).bincount(minlength=125).double()
    assert not counts[joint == 0].any()
    common = count * joint >= 5  # rarer texts together are one more cell
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([count * joint[common], (count * joint[~common]).sum()[None]])
    distance, cells = float(((observed - expected).square() / expected).sum()), len(expected)
    assert distance < cells + 4 * (2 * cells) ** 0.5, (distance, cells)


@pytest.mark.parametrize("architecture", ["prefix", "encoder_decoder"])
def test_models_that_read_the_prompt_as_a_source(architecture: str) -> None:
    """Parts that become greedy with some setting do so here, too; scores of a text are those of its continuation."""
    from ablatio import tokenizers
    from ablatio.model.prompting.session import Session

    model = tiny_models.model(REGISTRIES["architecture"][architecture], tied=False).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    ask = job(model, prompts(9), 7, second=model)
    expected = decodes.build("greedy")(ask)
    greedy = {
        "beam": {"width": 1}, "speculative": {"temperature": 0.0, "draft": 3}, "contrastive_search": {"alpha": 0.0},
        "contrastive": {"width": 1, "alpha": 1.0},
    }  # fmt: skip
    for name, knobs in greedy.items():
        assert ids(decodes.build(name, knobs)(ask)) == ids(expected), name
    session = Session(model, tokenizers.build("bytes"), decodes.build("greedy"))
    rows = [([*p, *c[0].ids], len(p)) for p, c in zip(ask.prompts, expected, strict=True) if c[0].finished == "length"]
    scores = [c[0].logprob for c in expected if c[0].finished == "length"]
    with torch.no_grad():
        assert list(session._scores(rows)) == pytest.approx(scores, abs=1e-3)
    with pytest.raises(UserError):
        decodes.build("medusa")(ask)


@pytest.mark.parametrize("draft", [1, 4])
@pytest.mark.parametrize("attention", ["mha", "gated_deltanet", "sliding"])
def test_speculative_greedy_is_greedy(amateur: Any, draft: int, attention: str) -> None:
    """Also in models whose layers keep a state in place of keys and values."""
    model = tiny_models.model(REGISTRIES["attention"][attention], tied=False, seed=2).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    rows = prompts(7)
    for second in (amateur, model):  # the model itself as the draft: everything is accepted
        part = decodes.build("speculative", {"draft": draft, "temperature": 0.0})
        assert ids(part(job(model, rows, second=second))) == ids(decodes.build("greedy")(job(model, rows)))


@pytest.mark.oracle("decode=best_of_n", "the samples of decode=sample, ranked by a full pass")
@pytest.mark.parametrize("by", ["likelihood", "mean", "judge"])
def test_best_of_n_ranks_samples(net: Any, by: str) -> None:
    rows = prompts(8)
    ask = job(net, rows, judge=lambda row, found: [sum(c) % 7 + row for c in found])
    found = decodes.build("best_of_n", {"n": 5, "by": by})(ask)
    drawn = decodes.build("sample")(ask.repeated(5))
    for i, (row, group) in enumerate(zip(rows, found, strict=True)):
        samples = [c[0] for c in drawn[5 * i : 5 * i + 5]]
        scores = [
            sum(c.ids) % 7 + i if by == "judge" else logprob(net, row, c) / (c.tokens if by == "mean" else 1)
            for c in samples
        ]
        expected = [c.ids for _, _, c in sorted(zip(scores, range(5), samples, strict=True), key=lambda x: -x[0])]
        assert [c.ids for c in group] == expected
    empty = decodes.build("best_of_n", {"n": 5, "by": by})(replace(ask, ending=replace(ask.ending, new_tokens=0)))
    assert [[c.ids for c in group] for group in empty] == [[[]] * 5] * len(rows)
    with pytest.raises(UserError, match="none was given"):
        decodes.build("best_of_n", {"by": "judge"})(replace(ask, judge=None))
