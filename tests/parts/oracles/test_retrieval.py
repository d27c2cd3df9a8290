"""architecture=retro: which passages are found, which tokens attend to them, and decoding token by token."""

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config
from torch import Tensor

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel

V, M = 60, 4


def model(**knobs: object) -> LanguageModel:
    torch.manual_seed(0)
    chosen = {"name": "retro", "chunk": M, "neighbors": 2, "entries": 64, **knobs}
    net = build_model(model_config(architecture=chosen), V).double().eval()
    with torch.no_grad():
        net.nothing.normal_()
    net.read_corpus(text(300, 9)[0].numpy())
    return net


def text(length: int, seed: int = 0, rows: int = 1) -> Tensor:
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.oracle("architecture=retro", "cosines of all passages, in a loop")
def test_the_nearest_passages_of_the_training_text_are_found() -> None:
    net, corpus = model(), text(300, 9)[0]
    held, vectors = net.passages, net.passages.vectors.double()
    starts = [int(s) for s in range(0, 296, M) if any(torch.equal(corpus[s : s + 2 * M].int(), t) for t in held.texts)]
    assert len(starts) == 64
    sums = torch.stack([vectors[corpus[s : s + M]].sum(0) for s in starts])
    keys = F.normalize(sums - sums.mean(0), dim=-1)
    row = text(3 * M)
    for u in range(3):
        query = vectors[row[0, u * M : (u + 1) * M]].sum(0) - sums.mean(0)
        order = (keys @ F.normalize(query, dim=0)).topk(2).indices.tolist()
        wanted = [corpus[starts[i] : starts[i] + 2 * M].tolist() for i in order]
        found = held.find(row[:, u * M : (u + 1) * M][:, None], row, 2, leave_out=False)
        assert found[0, 0].tolist() == wanted


def test_training_leaves_out_passages_of_the_same_place() -> None:
    net, corpus = model(), text(300, 9)
    row = corpus[:, 40:72]
    chunk = row[:, 8:12][:, None]
    own = row[0, 8:16].tolist()
    assert net.passages.find(chunk, row, 1, leave_out=False)[0, 0, 0].tolist() == own
    assert net.passages.find(chunk, row, 1, leave_out=True)[0, 0, 0].tolist() != own


@pytest.mark.oracle("architecture=retro", "section 2.4: tokens m u + m - 1 ... read the neighbors of chunk u alone")
def test_tokens_read_the_neighbors_of_the_last_whole_chunk() -> None:
    """Other passages of chunk u change exactly the tokens from its end on; each token's memory is that of its chunk."""
    net, tokens = model(), text(4 * M + 2)
    memory = net.recall(tokens, None)
    readers = [max(0, (t + 1) // M) for t in range(4 * M + 2)]
    assert memory.readers is not None and memory.readers[0].tolist() == readers
    assert memory.segments is not None and memory.segments[0].tolist() == [0] + [
        u for u in (1, 2, 3, 4) for _ in range(2 * 2 * M)
    ]
    plain = net(tokens)
    real = net.passages.find

    def other(chunks: Tensor, *more: object, **how: object) -> Tensor:
        found = real(chunks, *more, **how)
        found[:, 1] = (found[:, 1] + 7) % V
        return found

    net.passages.find = other
    apart = (net(tokens) - plain).abs().amax(-1)[0] > 1e-12
    assert apart.tolist() == [t >= 2 * M - 1 for t in range(4 * M + 2)]


def test_later_tokens_and_other_documents_change_nothing() -> None:
    net, tokens = model(), text(22)
    changed = tokens.clone()
    changed[:, 15:] = text(22, 5)[:, 15:]
    torch.testing.assert_close(net(changed)[:, :15], net(tokens)[:, :15], rtol=0, atol=1e-12)
    segments = torch.tensor([[0] * 9 + [1] * 13])
    packed = net(tokens, segments)
    alone = torch.cat([net(tokens[:, :9]), net(tokens[:, 9:])], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


def test_decoding_gives_what_a_whole_pass_gives() -> None:
    net, tokens = model(), text(19, rows=2)
    cache, pieces = KVCache(), []
    for a, b in ((0, 6), *((t, t + 1) for t in range(6, 19))):
        pieces.append(net(tokens[:, a:b], None, cache))
    torch.testing.assert_close(torch.cat(pieces, 1), net(tokens), rtol=1e-9, atol=1e-9)


def test_the_passages_are_kept_with_the_weights() -> None:
    net = model()
    other = build_model(model_config(architecture={"name": "retro", "chunk": M, "neighbors": 2, "entries": 64}), V)
    other.double().load_state_dict(net.state_dict())
    torch.testing.assert_close(other.eval()(text(12)), net(text(12)))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_passages_may_be_longer_than_the_text_that_the_decoder_reads(position: str) -> None:
    """Passages of 2 m tokens are encoded at all lengths of the decoder's text, with a table of positions too."""
    chosen = {"name": "retro", "chunk": 8, "neighbors": 2, "entries": 64}
    net = build_model(model_config(architecture=chosen, position=position, max_len=12), V)
    net.read_corpus(text(300, 9)[0].numpy())
    assert net(text(12)).isfinite().all()
    assert net.encoder.max_len == 16 and net.model.max_len == 12
