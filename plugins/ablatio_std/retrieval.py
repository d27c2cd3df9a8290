"""RETRO: a decoder whose chunks attend to similar passages of the training text."""

from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, Range, architectures, rule
from ablatio.model.builder import ModelBuilder
from ablatio.model.context import EncoderOutput
from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.cross_entropy import Tie
from ablatio.model.example import PADDING, Example, positions_in_documents
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio.model.matmul_backend import few_rows
from ablatio.model.parameter_roles import named_generator
from ablatio.model.records import Record
from ablatio.model.stack import Stack

WIDTH = 64  # of the keys of passages
OVERLAP = 8  # tokens that a passage and a row have in common if it comes from the same place of the text
SPARE = 8  # passages that are looked at beyond those that are used, in place of overlapping ones
AT_ONCE = 4096  # passages whose keys are computed at a time
NONE = 0  # number of the memory of tokens before the end of the first chunk; chunks have the numbers 1, 2, ...


class Passages(nn.Module):
    """Passages of the training text, found by their first chunks: nearest in the cosine of their keys.

    The key of a chunk is the sum of fixed random vectors of its tokens, less the mean key of the text.  The paper uses
    a frozen BERT.  Passages are buffers: they are saved with the weights.
    """

    vectors: Tensor
    texts: Tensor
    keys: Tensor
    center: Tensor

    def __init__(self, vocab_size: int, chunk: int, entries: int) -> None:
        super().__init__()
        drawn = torch.randn(vocab_size, WIDTH, generator=named_generator(0, "retro/vectors"))
        self.chunk = chunk
        self.register_buffer("vectors", drawn, persistent=False)
        self.register_buffer("texts", torch.zeros(entries, 2 * chunk, dtype=torch.int32))
        self.register_buffer("keys", torch.zeros(entries, WIDTH))
        self.register_buffer("center", torch.zeros(WIDTH))

    @torch.no_grad()
    def fill(self, ids: Any) -> None:
        """Take passages of two chunks from evenly spaced places of a text (n,), up to the number of entries."""
        count, size = len(self.texts), 2 * self.chunk
        starts = np.linspace(0, max(0, len(ids) - size), count).astype(np.int64) // self.chunk * self.chunk
        starts = np.unique(starts)
        # A text that is shorter than a passage is repeated: all passages have one length.
        rows = np.stack([np.resize(np.asarray(ids[s : s + size]).astype(np.int64), size) for s in starts])
        texts = torch.from_numpy(rows).to(self.texts.device)
        sums = torch.cat([self._sum(part[:, : self.chunk]) for part in texts.split(AT_ONCE)])
        self.center.copy_(sums.mean(0))
        self.texts.zero_()[: len(texts)] = texts.int()
        self.keys.zero_()[: len(texts)] = F.normalize(sums - self.center, dim=-1)

    def _sum(self, chunks: Tensor) -> Tensor:
        return self.vectors[chunks].sum(-2)

    @torch.no_grad()
    def find(self, chunks: Tensor, rows: Tensor, count: int, leave_out: bool) -> Tensor:
        """Return the nearest passages to chunks (B, U, m) of rows (B, T): (B, U, count, 2 m).

        leave_out  passages that have OVERLAP tokens in a row in common with the row are used last: in training they
                   would show the model the text that it is to predict
        """
        # Less the mean key: frequent tokens give all sums one direction, and every cosine would be near 1.
        scores = F.normalize(self._sum(chunks) - self.center, dim=-1) @ self.keys.T  # (B, U, entries)
        found = scores.topk(min(count + SPARE * leave_out, len(self.texts)), dim=-1).indices
        passages = self.texts[found].long()  # (B, U, K, 2 m)
        if not leave_out:
            return passages
        taken = torch.stack([_shares(p, row) for p, row in zip(passages, rows, strict=True)])  # (B, U, K)
        # Used last and not dropped: every chunk needs as many passages.
        order = taken.long().argsort(dim=-1, stable=True)[..., :count]
        return passages.gather(2, order[..., None].expand(-1, -1, -1, passages.shape[-1]))


def _shares(passages: Tensor, row: Tensor) -> Tensor:
    """True for passages (U, K, 2 m) with OVERLAP consecutive tokens that occur in the row (T,): (U, K)."""
    size = min(OVERLAP, passages.shape[-1], len(row))
    powers = 1_000_003 ** torch.arange(size, device=row.device)  # a hash in 64 bits, which wraps around
    there, here = (x.unfold(-1, size, 1).mul(powers).sum(-1) for x in (passages, row))
    return torch.isin(there, here).any(-1)


@architectures.register("retro", paper="arXiv:2112.04426")
class Retro(LanguageModel):
    """Decoder with chunked cross-attention: tokens attend to the encoded neighbors of the last chunk that has ended.

    A document is cut into chunks of `chunk` = m tokens.  The `neighbors` nearest passages of the training text, a chunk
    with the one that follows it, are read by a bidirectional encoder with the same embedding.  Tokens m u + m - 1 up to
    m (u + 1) + m - 2 attend to the neighbors of chunk u, in each layer; the first m - 1 tokens of a document to a
    learned state.  The training text is that of task=pretrain, of which `entries` passages are kept with the weights;
    training leaves out those that overlap the row.  The paper's encoder also attends to the chunk that it is read for,
    and only every third layer of its decoder attends to neighbors.
    """

    waits = "how many chunks a row has depends on the lengths of its documents"
    mask, accepts, stacks, objective = "encoder_decoder", ("next tokens",), ("encoder", "decoder"), "lm"

    def __init__(
        self,
        builder: ModelBuilder,
        *,
        chunk: Annotated[int, Range(2), "tokens m of a chunk"] = 16,
        neighbors: Annotated[int, Positive, "passages read for each chunk"] = 2,
        entries: Annotated[int, Range(2), "largest number of passages of the training text"] = 4096,
    ) -> None:
        super().__init__(builder, "causal")
        self.shared_prefix = False  # a row's memory depends on all of its tokens
        self.chunk, self.neighbors = chunk, neighbors
        self.encoder = Stack(builder.for_length(2 * chunk), "full", "encoder", table=self.model.embed_tokens)
        self.passages = Passages(builder.dims.vocab_size, chunk, entries)
        self.nothing = nn.Parameter(torch.zeros(builder.dims.d_model))

    def read_corpus(self, ids: Any) -> None:
        """Fill the passages from the training text, token ids (n,)."""
        if not is_meta_tensor(self.passages.texts):
            self.passages.fill(ids)

    def recall(self, tokens: Tensor, segments: Tensor | None, record: Record | None = None) -> EncoderOutput:
        """Encode the neighbors of all chunks of rows (B, T); its `readers` say whose neighbors a token attends to."""
        batch = len(tokens)
        chunks, numbers, readers = self._chunks(tokens, segments)  # (B, U, m), (B, U), (B, T)
        if is_meta_tensor(tokens):  # no values: only shapes are used
            texts = tokens.new_zeros(batch, chunks.shape[1], self.neighbors, 2 * self.chunk)
        else:
            texts = self.passages.find(chunks, tokens, self.neighbors, leave_out=self.training)
        many = texts.shape[1] * texts.shape[2] * texts.shape[3]
        # Cross-attention needs a key for tokens before the first chunk has ended.
        nothing = self.nothing.expand(batch, 1, -1)
        none = numbers.new_full((batch, 1), NONE)
        if not many:
            return EncoderOutput(nothing, none, readers)
        states = self.encoder(texts.flatten(0, 2), record=record).view(batch, many, -1)
        owner = numbers.repeat_interleave(many // texts.shape[1], dim=1)
        return EncoderOutput(torch.cat([nothing.to(states.dtype), states], 1), torch.cat([none, owner], 1), readers)

    def _chunks(self, tokens: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Whole chunks of each row, padded to equally many: their tokens, their numbers (-1: padding), the readers."""
        batch, length = tokens.shape
        if is_meta_tensor(tokens):
            count = length // self.chunk
            empty = tokens.new_zeros(batch, count, self.chunk), tokens.new_zeros(batch, count)
            return *empty, tokens.new_zeros(batch, length)
        place = torch.arange(length, device=tokens.device).expand(batch, -1)
        own = place if segments is None else positions_in_documents(segments)
        ends = own % self.chunk == self.chunk - 1
        ends = ends if segments is None else ends & (segments != PADDING)
        number = ends.cumsum(1)  # (B, T): chunks that have ended in the row so far
        # From the last token of the first chunk on: its neighbors were found by tokens up to this one.
        readers = torch.where(own >= self.chunk - 1, number, NONE)
        count = int(number.max()) if length else 0
        order = torch.where(ends, place, length).sort(dim=1).values[:, :count]  # (B, U): the chunks' last tokens
        there = order < length
        span = order.clamp(max=length - 1)[..., None] - torch.arange(self.chunk - 1, -1, -1, device=tokens.device)
        chunks = tokens.gather(1, span.clamp(min=0).flatten(1)).view(batch, count, self.chunk)
        numbers = torch.where(there, torch.arange(1, count + 1, device=tokens.device), -1)
        return chunks, numbers, readers

    def forward(self, tokens: Tensor, segments: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        memory = self.recall(tokens, segments) if cache is None else self._remember(tokens, segments, cache)
        return self.logits(self.model(tokens, segments, cache, memory=memory))

    def _remember(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> EncoderOutput:
        """The memory of new tokens after those in a cache; encoded again only when a chunk has ended."""
        before = cache.length
        known = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], 1)
        if cache.segments is not None or segments is not None:
            first = known.new_zeros(len(known), before) if cache.segments is None else cache.segments
            last = first[:, -1:] if before else known.new_zeros(len(known), 1)
            segments = torch.cat([first, last.expand(-1, tokens.shape[1]) if segments is None else segments], 1)
        cache.tokens = known
        *_, readers = self._chunks(known, segments)
        changed = cache.memory is None or bool((readers[:, before:] != readers[:, max(0, before - 1), None]).any())
        if changed:
            cache.memory = self.recall(known, segments)
            cache.forget_memory()
        held: EncoderOutput = cache.memory
        return EncoderOutput(held.states, held.segments, readers[:, before:])

    def read(self, tokens: Tensor, segments: Tensor | None, cache: KVCache) -> Tensor:
        return self.forward(tokens, segments, cache)[:, -1]

    def extend(self, tokens: Tensor, cache: KVCache) -> Tensor:
        with few_rows(len(tokens), self.lm_head.in_features):
            return self.forward(tokens, None, cache)[:, -1]

    def hidden(self, example: Example, record: Record | None = None, tie: Tie | None = None) -> Tensor:
        memory = self.recall(example.inputs, example.segments, record)
        states: Tensor = self.model(example.inputs, example.segments, memory=memory, record=record, tie=tie)
        return states


rule(
    when="architecture.name == 'retro' and mixture is not None",
    why="architecture=retro retrieves from one training text, and mixture={mixture.name} draws from several",
    fix="mixture=null",
    where="mixture",
)
