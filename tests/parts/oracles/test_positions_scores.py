"""shaw, transformer_xl and cope against transformers' Wav2Vec2-BERT, XLNet and loops in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import XLNetConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import _apply_relative_key_position_encoding
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from ablatio.registry.kinds import positions

H, WIDTH = 4, 8
WIRING = {"d_model": H * WIDTH, "d_head": WIDTH, "n_heads": H, "n_layers": 2, "max_len": 32, "causal": True}


def made(name, knobs=None, **wiring):
    part = positions.build(name, knobs, **WIRING | wiring).double()
    for p in part.parameters():
        torch.nn.init.normal_(p)
    return part


def queries_and_keys(queries=7, keys=7):
    return (torch.randn(2, H, n, WIDTH, dtype=torch.float64) for n in (queries, keys))


# Shaw


@pytest.mark.oracle("position=shaw", "transformers Wav2Vec2-BERT relative_key")
@pytest.mark.parametrize("most", [2, 3, 20])
def test_shaw_is_wav2vec2_berts(most):
    """transformers uses key - query, so its table is reversed."""
    (q, k), pos = queries_and_keys(9, 9), torch.arange(9)
    part = made("shaw", {"max_distance": most}, causal=False)
    table = torch.nn.Embedding.from_pretrained(part.table.weight.flip(0).detach())
    settings = {"left_max_position_embeddings": most, "right_max_position_embeddings": most}
    theirs = SimpleNamespace(**settings, distance_embedding=table, scaling=WIDTH**-0.5)
    expected = _apply_relative_key_position_encoding(theirs, q, k)[1]
    torch.testing.assert_close(part.score(q, k, pos, pos), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_shaw_by_loop(causal):
    part, (q, k) = made("shaw", {"max_distance": 3}, causal=causal), queries_and_keys(3, 5)
    q_pos, k_pos = torch.tensor([[4, 9, 2], [0, 1, 30]]), torch.tensor([[0, 9, 1, 5, 4], [31, 2, 1, 0, 7]])
    score = part.score(q, k, q_pos, k_pos)
    for b, h, t, s in torch.cartesian_prod(*(torch.arange(n) for n in score.shape)).tolist():
        n = max(0 if causal else -3, min(3, q_pos[b, t].item() - k_pos[b, s].item()))
        expected = q[b, h, t] @ part.table.weight[n + (0 if causal else 3)] / math.sqrt(WIDTH)
        torch.testing.assert_close(score[b, h, t, s], expected, rtol=0, atol=1e-12)


def test_shaw_is_the_same_beyond_its_distance():
    part, (q, k) = made("shaw", {"max_distance": 4}), queries_and_keys(1, 30)
    score = part.score(q, k, torch.tensor([29]), torch.arange(30))[..., 0, :]
    assert torch.equal(score[..., :26], score[..., :1].expand(-1, -1, 26))
    assert (score[..., 25:].diff() != 0).all()


# Transformer-XL


@pytest.mark.oracle("position=transformer_xl", "transformers XLNetRelativeAttention")
@pytest.mark.parametrize("queries, keys", [(7, 7), (3, 9)])
def test_transformer_xl_is_xlnets(queries, keys):
    """XLNet shifts a table of sinusoids row by row, with all sines before all cosines."""
    part, (q, k) = made("transformer_xl", causal=False), queries_and_keys(queries, keys)
    config = XLNetConfig(d_model=H * WIDTH, n_head=H, d_head=WIDTH, n_layer=1, dropout=0.0)
    theirs = XLNetRelativeAttention(config).double()
    with torch.no_grad():
        theirs.r_w_bias.copy_(part.u.view(H, WIDTH))
        theirs.r_r_bias.copy_(part.v.view(H, WIDTH))
    table = XLNetModel(config).relative_positional_encoding(queries, keys).double()[:, 0]  # (keys + queries, D)
    order = torch.arange(H * WIDTH).view(-1, 2).T.flatten()
    k_head_r = (table @ part.r_proj.weight[:, order].T).view(-1, 1, H, WIDTH).expand(-1, 2, -1, -1)
    k_pos = torch.arange(keys)
    score = part.score(q, k, k_pos[keys - queries :], k_pos)
    ours = (q @ k.mT / math.sqrt(WIDTH) + score).softmax(-1)
    by_time = [x.permute(2, 0, 1, 3) for x in (q, k)]
    _, probabilities = theirs.rel_attn_core(by_time[0], by_time[1], by_time[1], k_head_r, output_attentions=True)
    theirs_by_row = probabilities.permute(2, 3, 0, 1)
    torch.testing.assert_close(ours, theirs_by_row, rtol=0, atol=2e-6)  # their sinusoids are float32


@pytest.mark.parametrize("causal", [True, False])
def test_transformer_xl_by_loop(causal):
    part, (q, k) = made("transformer_xl", {"clamp": 6}, causal=causal), queries_and_keys(3, 5)
    q_pos, k_pos = torch.tensor([[4, 9, 2], [0, 1, 30]]), torch.tensor([[0, 9, 1, 5, 4], [31, 2, 1, 0, 7]])
    score = part.score(q, k, q_pos, k_pos)
    u, v = part.u.view(H, WIDTH), part.v.view(H, WIDTH)
    for b, h, t, s in torch.cartesian_prod(*(torch.arange(n) for n in score.shape)).tolist():
        n = max(0 if causal else -6, min(6, q_pos[b, t].item() - k_pos[b, s].item()))
        angles = [n / 10000.0 ** (2 * i / (H * WIDTH)) for i in range(H * WIDTH // 2)]
        r = torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)], dtype=torch.float64)
        w_r = part.r_proj.weight.view(H, WIDTH, -1)[h] @ r
        expected = (u[h] @ k[b, h, s] + (q[b, h, t] + v[h]) @ w_r) / math.sqrt(WIDTH)
        torch.testing.assert_close(score[b, h, t, s], expected, rtol=0, atol=1e-11)


# CoPE


def cope_by_loop(q, k, table, first):
    """Scores of one head, q and k (T, d); query t sees keys first[t] ... t of its document; NaN for all others."""
    score = torch.full((len(q), len(k)), math.nan, dtype=q.dtype)
    for t in range(len(q)):
        count = 0.0
        for s in range(t, first[t] - 1, -1):
            count += 1 / (1 + math.exp(-(q[t] @ k[s]) / math.sqrt(WIDTH)))
            place = min(count, len(table) - 1.0)
            low = math.floor(place)
            part = place - low
            e = table[low] if part == 0 else (1 - part) * table[low] + part * table[low + 1]
            score[t, s] = q[t] @ e
    return score


@pytest.mark.oracle("position=cope", "float64 loop")
@pytest.mark.parametrize("most", [64, 4])
@pytest.mark.parametrize("starts", [[0], [0, 4, 5]], ids=str)
def test_cope_by_loop(most, starts):
    """Single and packed documents: counts do not extend into the previous document."""
    part, (q, k) = made("cope", {"max_positions": most}), queries_and_keys(11, 11)
    first = [max(s for s in starts if s <= t) for t in range(11)]
    pos = torch.arange(11) - torch.tensor(first)
    score = part.score(q, k, pos.expand(2, -1), pos.expand(2, -1))
    last = part.score(q[:, :, 8:], k, pos[8:], pos)  # as with a cache
    for b in range(2):
        for h in range(H):
            expected = cope_by_loop(q[b, h], k[b, h], part.table.weight, first)
            seen = ~expected.isnan()
            torch.testing.assert_close(score[b, h][seen], expected[seen], rtol=0, atol=1e-12)
            torch.testing.assert_close(last[b, h][seen[8:]], expected[8:][seen[8:]], rtol=0, atol=1e-12)


def test_cope_counts_every_key_with_open_gates():
    """A position is then t - s + 1, as in a relative encoding, and is clamped at the last row of the table."""
    part = made("cope", {"max_positions": 6})
    q = torch.full((1, 1, 10, WIDTH), 100.0, dtype=torch.float64)
    score = part.score(q, q, torch.arange(10), torch.arange(10))[0, 0, -1].flip(0)  # by distance
    expected = (q[0, 0, 0] @ part.table.weight.T)[torch.tensor([1, 2, 3, 4, 5, 5, 5, 5, 5, 5])]
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-9)
