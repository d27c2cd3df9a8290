"""Texts whose sentences carry a tag for their quality, for pre-training that is conditional on it."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from ablatio import Fraction, OptionOf, Positive, rewards, sources
from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer

SENTENCES = re.compile(r"(?<=[.!?])\s+")


@sources.register("rated")
class Rated:
    """The documents of a source with `good` before each sentence that a rule scores above `threshold`, else `bad`.

    A model trained on them writes as the tag before its text asks for: conditional training, the best of the objectives
    for pre-training with preferences in Korbak et al. 2023, arXiv:2302.08582.  A share `untagged` of the sentences has
    no tag, so that the model can also be used without.  Tags are plain text for the tokenizer.
    """

    def __init__(
        self,
        *,
        of: Annotated[str, OptionOf("source"), "source of the documents"] = "sotu",
        documents: Annotated[int | None, Positive, "largest number of documents; null: all"] = None,
        reward: Annotated[str, OptionOf("reward"), "rule that scores a sentence"] = "length",
        threshold: Annotated[float, "sentences with a larger score are good"] = 0.5,
        good: Annotated[str, "tag of good sentences"] = "<|good|>",
        bad: Annotated[str, "tag of the others"] = "<|bad|>",
        untagged: Annotated[float, Fraction, "share of sentences without a tag"] = 0.01,
    ) -> None:
        if rewards[reward].wiring != ("answer",):
            known = [e.name for e in rewards if e.wiring == ("answer",)]
            raise UserError(
                f"source.reward={reward} is no rule for one text; those are {', '.join(known)}\n"
                f"    try: source.reward={known[0]}"
            )
        if of == "rated":
            raise UserError("source.of=rated would tag the tags\n    try: source.of=sotu")
        self.source: Any = sources.build(of)
        self.rule: Callable[[Answer], float] = rewards.build(reward)  # type: ignore[assignment]
        self.count, self.threshold, self.tags, self.untagged = documents, threshold, (bad, good), untagged
        self.knobs = of, documents, reward, threshold, good, bad, untagged

    def documents(self) -> Iterator[Document]:
        for document in itertools.islice(self.source.documents(), self.count):
            yield Document(" ".join(map(self._tagged, SENTENCES.split(document.text))), document.id, document.split)

    def _tagged(self, sentence: str) -> str:
        # By the sentence, so that it is tagged alike wherever it stands.
        drawn = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big") / 2**32
        if not sentence.strip() or drawn < self.untagged:
            return sentence
        score = self.rule(Answer("", sentence, (), tuple(sentence.encode())))
        return self.tags[score > self.threshold] + sentence

    def fingerprint(self) -> str:
        return hashlib.sha256(f"rated-1 {self.knobs} {self.source.fingerprint()}".encode()).hexdigest()
