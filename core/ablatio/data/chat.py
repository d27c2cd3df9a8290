"""Conversations as tokens: chat templates, their special tokens, and which tokens the assistant wrote."""

import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ablatio.data.documents import ChatSegment as ChatSegment
from ablatio.data.types import Conversation, Feedback, Ids, Message, Source, Tokenizer, start_id, token_type
from ablatio.errors import UserError
from ablatio.registry.kinds import templates
from ablatio.registry.kinds.data import Template as Template

log = logging.getLogger("ablatio")
EOS = ""  # stands in templates for the tokenizer's own end-of-document token
BOS = "\N{START OF TEXT}"  # stands for the token that opens a text: its bos or, without one, its end-of-document token


class SpecialTokenTokenizer:
    """A tokenizer whose ids are followed by special tokens; one that the base already has keeps its id.

    No text encodes to a special token, so the text of a message can never open a turn.
    """

    def __init__(self, base: Tokenizer, signs: Sequence[str]) -> None:
        known: dict[str, int] = dict(getattr(base, "specials", {}))
        added = [sign for sign in signs if sign not in known]
        self.base, self.trained, self.eos = base, type(base).trained, base.eos
        self.specials = known | {sign: base.vocab_size + i for i, sign in enumerate(added)}
        self.vocab_size = base.vocab_size + len(added)
        self._added = added

    def __getattr__(self, name: str) -> Any:
        if name == "base":  # not set yet, as in a copy or an unpickled object: looking it up would recurse
            raise AttributeError(name)
        found = getattr(self.base, name)
        return functools.partial(self._fast, found) if name == "fast" else found

    def _fast(self, of_base: Callable[[str], Any], eos: str) -> Any:
        """The base as a `tokenizers.Tokenizer`, with the special tokens added under their ids."""
        made = of_base(eos)
        data = json.loads(made.to_str())
        # Through JSON, so that the tokens get our ids, and not those that the library would count on with.
        if isinstance(vocab := data["model"]["vocab"], list):  # of a unigram model: the ids are the places
            # A log-probability so low that no text is ever cut into such a piece.
            vocab += [[sign, -1e4] for sign in self._added]
        else:
            vocab |= {sign: self.specials[sign] for sign in self._added}
        found = type(made).from_str(json.dumps(data))
        found.add_special_tokens(self._added)
        return found

    def train(self, texts: Iterable[str]) -> None:
        """Train the base tokenizer."""
        self.base.train(texts)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Encode with the base tokenizer; special tokens never result."""
        return self.base.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; added special tokens decode to the empty string."""
        return self.base.decode([i for i in ids if i < self.base.vocab_size])

    def token_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each id: (V,); 0 for added special tokens."""
        return np.concatenate([self.base.token_bytes(), np.zeros(len(self._added), dtype=np.int64)])

    def state(self) -> str:
        """State of the base tokenizer: the special tokens follow from the template."""
        return self.base.state()

    def restore(self, state: str) -> None:
        """Restore the base tokenizer."""
        self.base.restore(state)


def with_special_tokens(tokenizer: Tokenizer, template: Template) -> Tokenizer:
    """Add the template's special tokens to the tokenizer; return it unchanged if it has them all."""
    known = getattr(tokenizer, "specials", {})
    if all(sign in known for sign in template.signs):
        return tokenizer
    # Any: the protocol declares `trained` as a class variable, here it is an attribute taken from the base.
    made: Any = SpecialTokenTokenizer(tokenizer, template.signs)
    return cast(Tokenizer, made)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A tokenized conversation: `ids` (n,), from the start token on; `said` (n,): True for tokens of the assistant.

    `weights` (n,): factors of the loss, 0 where `said` is False; None: 1 for all tokens of the assistant.
    """

    ids: Ids
    said: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None

    @property
    def loss_weights(self) -> NDArray[np.float32]:
        """The factor of the loss of each token: (n,)."""
        return self.said.astype(np.float32) if self.weights is None else self.weights

    def __len__(self) -> int:
        return len(self.ids)


def write(
    tokenizer: Tokenizer, template: Template, conversations: Sequence[Sequence[Message]], answering: bool = False
) -> list[Written]:
    """Format each conversation with the template and tokenize it; `answering`: end with the opening of an answer.

    Text between two special tokens is tokenized as one text if the tokenizer can tell which tokens belong to which
    segment (`encode_joined`), as in transformers, which tokenizes the whole conversation as one text.

    Raises UserError for tool calls if the template has no form for them, and for weights that it does not pass on.
    """
    formatted = [_formatted(template, messages, answering) for messages in conversations]
    groups = list(dict.fromkeys(g for segments in formatted for g in _groups_of_text(segments)))  # each encoded once
    encode = getattr(tokenizer, "encode_joined", None) or functools.partial(_encode_apart, tokenizer)
    ids = dict(zip(groups, encode(groups), strict=True)) if groups else {}
    dtype = token_type(tokenizer.vocab_size)

    def tokenized(segments: list[ChatSegment]) -> Written:
        # Each conversation opens as a document of the corpora does, so that a base model meets what it was trained on.
        parts = [np.array([start_id(tokenizer)], dtype=dtype)]
        said = [np.zeros(1, dtype=bool)]
        texts = iter([part for group in _groups_of_text(segments) for part in ids[group]])
        for segment in segments:
            part = np.array([sign_id(tokenizer, segment.text)]) if segment.sign else next(texts)
            parts.append(part.astype(dtype))
            said.append(np.full(len(part), segment.said))
        return Written(np.concatenate(parts), np.concatenate(said), weights_of(segments, said[1:]))

    def weights_of(segments: list[ChatSegment], said: list[NDArray[np.bool_]]) -> NDArray[np.float32] | None:
        # The usual case stays without an array that would say the same as `said`.
        if all(segment.weight == 1 for segment in segments):
            return None
        found = [mask * np.float32(segment.weight) for segment, mask in zip(segments, said, strict=True)]
        return np.concatenate([np.zeros(1, dtype=np.float32), *found])

    return [tokenized(segments) for segments in formatted]


def _formatted(template: Template, messages: Sequence[Message], answering: bool) -> list[ChatSegment]:
    """The segments of a conversation; of tools only what the template has a place for."""
    if not getattr(template, "tools", False):
        if any(m.calls or m.role == "tool" for m in messages):
            raise UserError(f"the conversation calls tools, {_no_place(template)}")
        # A system message that only defines tools would be left as an empty turn.
        messages = [replace(m, tools=()) if m.tools else m for m in messages if m.text or not m.tools]
    segments = list(template(messages, answering))
    weights = {m.weight for m in messages if m.role == "assistant"}
    if weights - {1.0} and not weights <= {segment.weight for segment in segments if segment.said}:
        raise UserError(
            f"turns have the loss weights {', '.join(map(str, sorted(weights)))}, which the template "
            f"{_name_of(template)} does not pass on\n    try: ChatSegment(text, said=True, weight=message.weight) in it"
        )
    return segments


def _no_place(template: Template) -> str:
    able = [entry.name for entry in templates if entry.facts["tools"]]
    return f"for which template={_name_of(template)} has no form\n    try: template={' or template='.join(able)}"


def _name_of(template: Template) -> str:
    kind = type(template)
    return next(
        (e.name for e in templates if (e.module, e.qualname) == (kind.__module__, kind.__qualname__)), kind.__name__
    )


def reading_notes(source: Source, template: Template, items: Sequence[Conversation | Feedback]) -> dict[str, Any]:
    """Notes for the manifest on what of the data was not used.

    `unused_fields`: fields that the source did not use; `tools_left_out`: number of conversations with definitions of
    tools for which the template has no place.  Raises UserError for the first conversation that calls tools if the
    template has no form for calls.
    """
    unused: dict[str, int] = getattr(source, "unused_fields", {})
    notes: dict[str, Any] = {"unused_fields": dict(unused)} if unused else {}
    if getattr(template, "tools", False):
        return notes
    left_out = 0
    for item in items:
        messages = item.messages if isinstance(item, Conversation) else item.prompt
        if any(m.calls or m.role == "tool" for m in messages):
            raise UserError(f"{item.id}: the conversation calls tools, {_no_place(template)}")
        left_out += any(m.tools for m in messages)
    if left_out:
        log.warning("the tools of %d of %d conversations are left out, %s", left_out, len(items), _no_place(template))
        notes["tools_left_out"] = left_out
    return notes


def _groups_of_text(segments: Iterable[ChatSegment]) -> list[tuple[str, ...]]:
    """Texts of the segments, those between two special tokens together."""
    return [tuple(s.text for s in group) for sign, group in itertools.groupby(segments, lambda s: s.sign) if not sign]


def _encode_apart(tokenizer: Tokenizer, groups: Sequence[Sequence[str]]) -> list[list[Ids]]:
    """Ids of each text of each group, encoded by itself."""
    texts = list(dict.fromkeys(text for group in groups for text in group))
    ids = dict(zip(texts, tokenizer.encode(texts), strict=True))
    return [[ids[text] for text in group] for group in groups]


def sign_id(tokenizer: Tokenizer, sign: str) -> int:
    """Return the id of a special token by its name. Raises UserError if the tokenizer does not have it."""
    if sign in (EOS, BOS):
        return tokenizer.eos if sign == EOS else start_id(tokenizer)
    known: dict[str, int] = getattr(tokenizer, "specials", {})
    if sign not in known:
        raise UserError(
            f"the template uses the special token {sign!r}, which tokenizer {type(tokenizer).__name__} does not have\n"
            "    try: template=plain"
        )
    return known[sign]


def truncate_to_length(written: Written, length: int, too_long: str, where: str, ahead: int = 1) -> Written | None:
    """Shorten a tokenized conversation to at most `length` + `ahead` tokens.

    too_long  what happens to a longer one: `cut` removes the beginning of the prompt, `drop` returns None, `refuse`
              raises UserError
    where     names the conversation in the error
    ahead     number of final tokens that are predicted but never read, so that they take no place in the row

    Returns None also if `cut` would have to shorten an answer: training on it would teach the model to start in the
    middle.
    """
    room = length + ahead
    if len(written) <= room:
        return written
    if too_long == "refuse":
        raise UserError(
            f"{where}: {len(written)} tokens, but a row holds {length}{f' + {ahead}' if ahead else ''}\n"
            f"    try: model.max_len={len(written) - ahead}, or task.too_long=cut"
        )
    first = len(written) - room + 1  # one place is taken by the eos that opens the row
    weights = written.weights if written.weights is None else np.append(np.float32(0), written.weights[first:])
    ids, said = np.append(written.ids[:1], written.ids[first:]), np.append(False, written.said[first:])
    kept = Written(ids, said, weights)
    # `written.said[first]`: the cut goes through an answer, or right before a part of one.
    whole = bool(kept.loss_weights.any()) and not written.said[first]
    return kept if too_long == "cut" and whole else None
