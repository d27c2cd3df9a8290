"""Objectives with a mask, an episode or a context of their own: unilm, meta_icl and context_distillation."""

from dataclasses import replace

import pytest
import torch
from helpers.support import model_config
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.registry.kinds import objectives

V, EOS, MARK = 60, 0, 1


def made(name: str, **knobs: object) -> object:
    return objectives.build(name, knobs, vocab_size=V, eos=EOS, max_len=128)


def packed(*lengths: int, rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of documents of these lengths, each opened by EOS, and their numbers."""
    tokens = torch.randint(2, V, (rows, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    numbers = torch.tensor([n for n, length in enumerate(lengths) for _ in range(length)]).expand(rows, -1)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    tokens[:, starts] = EOS
    return tokens, numbers


def model(architecture: str, **options: object) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(model_config(architecture=architecture, **options), V + 8).double().eval()


MODES = {
    "bidirectional": {"bidirectional": 1.0, "seq2seq": 0.0}, "seq2seq": {"bidirectional": 0.0, "seq2seq": 1.0},
    "neither": {"bidirectional": 0.0, "seq2seq": 0.0},
}  # fmt: skip


@pytest.mark.oracle("objective=unilm", "the paper's four masks, pair by pair, on attention weights of one layer")
@pytest.mark.parametrize("mode", MODES)
def test_unilm_sees_what_its_mask_allows(mode: str) -> None:
    tokens, numbers = packed(9, 14, rows=6)
    example = made("unilm", rate=0.3, **MODES[mode])(tokens, numbers, torch.Generator().manual_seed(3))
    assert example.opened is not None and example.segments is not None
    ctx = make_context(example.inputs, None, "causal", example.segments, None, torch.float32, opened=example.opened)
    visible = ctx.visible[:, 0]
    for row in range(6):
        for q in range(22):
            for k in range(22):
                together = example.segments[row, q] == example.segments[row, k]
                allowed = bool(together) and (k <= q or bool(example.opened[row, k]))
                assert bool(visible[row, q, k]) == allowed
    opened = example.opened
    if mode == "bidirectional":
        assert bool(opened.all())
    elif mode == "seq2seq":
        for row in range(6):
            for document in (slice(0, 8), slice(8, 22)):
                flags = opened[row, document].tolist()
                assert flags[0] and flags == sorted(flags, reverse=True)  # a first part, then the target
    else:
        assert not bool(opened.any())
        for row in range(6):  # each document as it is, or reversed: both occur
            for document in (slice(0, 8), slice(8, 22)):
                own = tokens[row, 1:][document]
                assert torch.equal(example.targets[row, document], own) or torch.equal(
                    example.targets[row, document], own.flip(0)
                )
        turned = (example.targets != tokens[:, 1:])[:, 8:].any(1)
        assert bool(turned.any()) and not bool(turned.all())


def test_unilm_predicts_its_hidden_tokens_in_place() -> None:
    tokens, _ = packed(200, rows=4)
    example = made("unilm", rate=0.2)(tokens, None, torch.Generator().manual_seed(0))
    asked = example.weights.bool()
    assert torch.equal(example.inputs[~asked], example.targets[~asked]) and int(asked.sum()) == 4 * round(0.2 * 199)
    masked = (example.inputs[asked] == V).float().mean()
    assert abs(float(masked) - 0.8) < 0.1
    loss = model("prefix").loss(example)
    assert torch.isfinite(loss.total)
    with pytest.raises(UserError, match=r"objective\.seq2seq=0\.2"):
        made("unilm", bidirectional=0.8, seq2seq=0.5)


@pytest.mark.oracle("objective=meta_icl", "its definition, in a loop over the row")
@pytest.mark.parametrize("shots", [0, 1, 2])
def test_meta_icl_scores_the_last_answer_of_each_episode(shots: int) -> None:
    tokens, numbers = packed(6, 7, 5, 8, 6)
    for start in (0, 6, 13, 18, 26):
        tokens[0, start + 3] = MARK
    example = made("meta_icl", shots=shots, marker=MARK)(tokens, numbers, torch.Generator())
    wanted, row = [0.0] * 32, tokens[0].tolist()
    for p in range(32):
        document = int(numbers[0, p])
        last = document % (shots + 1) == shots or document == 4
        begins = int((numbers[0] < document).sum())
        after = MARK in row[begins:p]
        wanted[p] = float(last and after)
    assert example.weights[0].tolist() == wanted[1:]
    episodes = [int(n) // (shots + 1) for n in numbers[0]]
    same = [[a == b for b in episodes[:-1]] for a in episodes[:-1]]
    found = example.segments[0]
    assert (found[:, None] == found[None]).tolist() == same


def test_meta_icl_leaves_out_a_document_that_began_before_the_row() -> None:
    tokens, numbers = packed(6, 6, 6)
    tokens[0, 0], tokens[0, [2, 9, 15]] = 5, MARK
    example = made("meta_icl", shots=1, marker=MARK)(tokens, numbers, torch.Generator())
    assert example.weights[0].nonzero()[:, 0].tolist() == [15, 16]
    assert len({int(s) for s in example.segments[0, :5]} & {int(s) for s in example.segments[0, 6:]}) == 0


@pytest.mark.oracle("objective=context_distillation", "each document by itself, with the context written before it")
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_the_teacher_reads_the_context_in_every_document(position: str) -> None:
    teacher, student = model("causal", position=position), model("causal", position=position, d_model=16)
    tokens, numbers = packed(7, 11, rows=2)
    tokens[1, 0] = 9  # a document that began before the row
    part = made("context_distillation", context="c", temperature=1.0)
    part.take_context(context := [3, 14, 15])
    part.learn_from(teacher)
    example = part(tokens, numbers, torch.Generator())
    wanted, count = torch.zeros(()).double(), 0
    for row in range(2):
        for a, b in ((0, 7), (7, 17)):
            own = example.inputs[row, a:b]
            opening = own[:1] if int(own[0]) == EOS else own[:0]
            text = torch.cat([opening, torch.tensor(context), own[len(opening) :]])[None]
            q = teacher(text)[0, -len(own) :].log_softmax(-1)
            p = student(own[None])[0].log_softmax(-1)
            wanted += (q.exp() * (q - p)).sum()
            count += len(own)
    found = part.loss(student, example)
    torch.testing.assert_close(found.total.detach(), wanted.detach(), rtol=1e-6, atol=1e-8)
    assert float(found.weight) == count
    alone = part.loss(student, replace(example, segments=None)).total
    assert torch.isfinite(alone) and not torch.allclose(alone, found.total)


def test_without_a_context_the_teacher_gives_plain_distillation() -> None:
    teacher, student = model("causal"), model("causal", d_model=16)
    tokens, numbers = packed(7, 11)
    losses = []
    for name in ("distillation", "context_distillation"):
        part = made(name, temperature=1.0, hard=0.0)
        part.learn_from(teacher)
        example: Example = part(tokens, numbers, torch.Generator())
        losses.append(part.loss(student, example).total)
    torch.testing.assert_close(*losses)
