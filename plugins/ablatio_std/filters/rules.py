"""Filters by rules: statistics of words, lines and repetitions; words and markup of web pages; language."""

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from ablatio import Fraction, NonNegative, filters
from ablatio.data.filters import Verdict
from ablatio.errors import UserError, did_you_mean

from ._common import WORD, ngrams, sentences

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
SYMBOLS = re.compile(r"#|\.\.\.|…")
BULLETS = ("•", "-")
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}  # share of characters in the most frequent n-gram
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # ... in n-grams that occur again


@filters.register("statistics", paper="arXiv:2112.11446")
class Statistics:
    """Gopher's rules of quality and repetition, with their published thresholds, and C4's rules for whole pages.

    Quality (appendix A.1.1): `words` per document, mean length of a word, symbols (# and ellipses) per word, lines that
    begin with a bullet or end with an ellipsis, words with a letter, different stop words.  Repetition (table A1):
    share of duplicate lines and paragraphs and of the characters in them, of the characters in the most frequent 2- to
    4-gram, and in 5- to 10-grams that occur again; `repetition` scales these thresholds.  C4 (arXiv:1910.10683): pages
    with `lorem ipsum` or fewer than `sentences` sentences.
    """

    def __init__(
        self,
        *,
        words: Annotated[tuple[int, int], NonNegative, "fewest and most words"] = (50, 100_000),
        word_length: Annotated[tuple[float, float], NonNegative, "smallest and largest mean length"] = (3.0, 10.0),
        symbols: Annotated[float, NonNegative, "most hash signs or ellipses per word"] = 0.1,
        bullets: Annotated[float, Fraction, "largest share of lines that begin with a bullet"] = 0.9,
        ellipses: Annotated[float, Fraction, "largest share of lines that end with an ellipsis"] = 0.3,
        alphabetic: Annotated[float, Fraction, "smallest share of words with a letter"] = 0.8,
        stop_words: Annotated[int, NonNegative, "fewest of: the be to of and that have with"] = 2,
        repetition: Annotated[float, NonNegative, "factor on the thresholds of repetition; 0: no such rule"] = 1.0,
        sentences: Annotated[int, NonNegative, "fewest sentences; C4 takes 3"] = 0,
        lorem_ipsum: Annotated[bool, "drop pages with `lorem ipsum`"] = True,
    ) -> None:
        self.words, self.word_length, self.symbols, self.bullets = words, word_length, symbols, bullets
        self.ellipses, self.alphabetic, self.stop_words, self.repetition = ellipses, alphabetic, stop_words, repetition
        self.sentences, self.lorem_ipsum = sentences, lorem_ipsum

    def measure(self, text: str) -> str:
        """Why the text is dropped; empty if it is kept."""
        return next((why for bad, why in self._rules(text) if bad), "")

    def judge(self, text: str, measure: str) -> Verdict:
        return Verdict(None, measure) if measure else Verdict(text)

    def _rules(self, text: str) -> Iterator[tuple[bool, str]]:
        tokens = text.split()
        # Gopher counts words, so a lone dash or bullet is none.
        spoken = [token for token in tokens if any(c.isalnum() for c in token)]
        yield len(spoken) < self.words[0], "too few words"
        yield len(spoken) > self.words[1], "too many words"
        count, mean = max(1, len(tokens)), sum(map(len, spoken)) / max(1, len(spoken))
        yield mean < self.word_length[0], "words too short"
        yield mean > self.word_length[1], "words too long"
        symbols = Counter(SYMBOLS.findall(text))
        yield max(symbols["#"], symbols["..."] + symbols["…"]) / count > self.symbols, "too many symbols"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        yield _share(lines, lambda line: line.startswith(BULLETS)) > self.bullets, "too many bullets"
        yield _share(lines, lambda line: line.endswith(("...", "…"))) > self.ellipses, "too many ellipses"
        letters = sum(any(c.isalpha() for c in token) for token in tokens) / count
        yield letters < self.alphabetic, "too few alphabetic words"
        # Different words, as in Gopher: a text that repeats one of them does not pass.
        found = STOP_WORDS.intersection(WORD.findall(text.lower())) if self.stop_words else ()
        yield len(found) < self.stop_words, "too few stop words"
        yield self.lorem_ipsum and "lorem ipsum" in text.lower(), "lorem ipsum"
        yield self.sentences > 0 and len(sentences(text)) < self.sentences, "too few sentences"
        if self.repetition:
            yield from self._repetition(text, lines, tokens)

    def _repetition(self, text: str, lines: Sequence[str], tokens: Sequence[str]) -> Iterator[tuple[bool, str]]:
        f = self.repetition
        paragraphs = [p.strip() for p in re.split(r"\n{2,}", text) if p.strip()]
        for name, units, most in (("lines", lines, 0.3), ("paragraphs", paragraphs, 0.3)):
            repeated, characters = _duplicates(units)
            yield repeated / max(1, len(units)) > most * f, f"duplicate {name}"
            yield characters / max(1, len(text)) > 0.2 * f, f"characters in duplicate {name}"
        size = max(1, len(text))
        for n, most in TOP_NGRAMS.items():
            counts = Counter(ngrams(tokens, n) if len(tokens) >= n else ())
            top = counts.most_common(1)[0] if counts else ("", 0)
            yield len(top[0]) * top[1] / size > most * f, f"frequent {n}-gram"
        for n, most in DUPLICATE_NGRAMS.items():
            yield _in_duplicates(tokens, n) / size > most * f, f"duplicate {n}-grams"


def _share(lines: Sequence[str], is_one: Any) -> float:
    return sum(map(is_one, lines)) / max(1, len(lines))


def _duplicates(units: Sequence[str]) -> tuple[int, int]:
    """(number of units that occurred before, characters in them)."""
    seen, count, characters = set[str](), 0, 0
    for unit in units:
        if unit in seen:
            count, characters = count + 1, characters + len(unit)
        seen.add(unit)
    return count, characters


def _in_duplicates(tokens: Sequence[str], n: int) -> int:
    """Characters in n-grams that occurred before; those that overlap one of them are left out."""
    seen, total, i = set[str](), 0, 0
    while i <= len(tokens) - n:
        gram = "".join(tokens[i : i + n])
        known = gram in seen
        # Past a repeated n-gram by its length: its characters count once.
        total, i = (total + len(gram), i + n) if known else (total, i + 1)
        seen.add(gram)
    return total


@filters.register("keywords", paper="arXiv:1910.10683")
class Keywords:
    """Removes markup and boilerplate lines of web pages, and drops documents with given words.

    Tags, comments, scripts and styles of HTML are removed and its entities decoded; lines that contain one of `lines`
    are removed, as are, with `terminal`, lines that do not end in a mark of punctuation (all C4's rules).  A document
    with one of `drop` is dropped, compared without case.
    """

    changes_text = True

    def __init__(
        self,
        *,
        drop: Annotated[tuple[str, ...], "texts that a kept document does not contain"] = ("lorem ipsum",),
        lines: Annotated[tuple[str, ...], "texts of lines that are removed"] = (
            "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
            "use cookies",
        ),
        html: Annotated[bool, "remove HTML tags and decode entities"] = True,
        terminal: Annotated[bool, "remove lines without a mark of punctuation at their end"] = False,
        line_words: Annotated[int, NonNegative, "fewest words of a line that is kept; C4 takes 5"] = 0,
    ) -> None:  # fmt: skip
        self.drop, self.lines = [t.lower() for t in drop], [t.lower() for t in lines]
        self.html, self.terminal, self.line_words = html, terminal, line_words

    def measure(self, text: str) -> tuple[str | None, str, dict[str, int]]:
        """(text that is kept, why it is dropped, counts of what was removed)."""
        lower = text.lower()
        for word in self.drop:
            if word and word in lower:
                return None, f"contains {word!r}", {}
        counts = Counter[str]()
        if self.html:
            text = _without_html(text, counts)
        kept = "".join(line for line in text.splitlines(keepends=True) if not self._is_boilerplate(line, counts))
        return kept, "only boilerplate", dict(counts)

    def judge(self, text: str, measure: tuple[str | None, str, dict[str, int]]) -> Verdict:
        return Verdict(*measure)

    def _is_boilerplate(self, line: str, counts: Counter[str]) -> bool:
        bare = line.strip()
        if not bare:
            return False
        lower = bare.lower()
        why = next((f"lines with {word!r}" for word in self.lines if word and word in lower), "")
        if not why and self.terminal and not bare.endswith((".", "!", "?", '"', "'", "”", "…", "。", "！", "？")):
            why = "lines without an end mark"
        if not why and len(bare.split()) < self.line_words:
            why = "short lines"
        counts.update([why] if why else [])
        return bool(why)


_BLOCKS = re.compile(r"<!--.*?-->|<(script|style)\b[^>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9-]*(?:\s[^<>]*)?/?>|<!doctype[^>]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def _without_html(text: str, counts: Counter[str]) -> str:
    for name, pattern, other in (
        ("scripts and comments", _BLOCKS, lambda found: ""),
        ("tags", _TAG, lambda found: ""),
        ("entities", _ENTITY, lambda found: _decoded(found[0])),
    ):
        text, count = pattern.subn(other, text)
        counts.update({name: count} if count else {})
    return text


def _decoded(entity: str) -> str:
    """The character of an entity; half of a surrogate pair stays as it was written, for it is no text."""
    found = html.unescape(entity)
    return entity if any("\ud800" <= c <= "\udfff" for c in found) else found


# Most frequent function words of languages in the Latin alphabet.
FUNCTION_WORDS: Mapping[str, str] = {
    "en": "the of and to in that is was for it with as his on be at by he this not are from which have an had they",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er",
    "fr": "de la le et les des en un du une que est pour qui dans par plus sur pas au avec ce il sont cette ses ou",
    "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí porque",
    "it": "di e il la che in un a per è una non sono con del da al le si dei come i della nel alla più anche ha gli",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à",
    "nl": "de en van het een in is dat op te zijn met voor niet aan er die als ook naar bij om maar uit dan nog wordt",
    "pl": "w i na z do się nie że jest o od po jak za przez tym co dla by był ale przy oraz jego są być może tylko ze",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag sig från så kan när",
    "tr": "ve bir bu da de için ile olarak daha olan çok gibi en sonra kadar ancak ama her o ne değil ya ki var",
}
SCRIPTS: Mapping[str, str] = {  # letters of languages with a script of their own
    "zh": r"[\u4e00-\u9fff\u3400-\u4dbf]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]", "el": r"[\u0370-\u03ff]", "he": r"[\u0590-\u05ff]", "ar": r"[\u0600-\u06ff]",
    "hi": r"[\u0900-\u097f]", "th": r"[\u0e00-\u0e7f]",
}  # fmt: skip
_WORDS_OF = {language: frozenset(text.split()) for language, text in FUNCTION_WORDS.items()}
_SHARED = Counter(word for found in _WORDS_OF.values() for word in found)  # number of languages that have a word
_LETTERS_OF = {language: re.compile(pattern) for language, pattern in SCRIPTS.items()}


@filters.register("language")
class Language:
    """Keeps documents in given languages, recognized by their script or their most frequent function words.

    A language with a script of its own scores by its share of the letters, times the number of words; one in the Latin
    alphabet by its function words, each over the number of languages that share it.  p = score^2 /
    sum of score^2 over all languages; Japanese includes the Chinese characters beside kana.  Languages: en de fr es it
    pt nl pl sv tr zh ja ko ru el he ar hi th.
    Source: Grefenstette, Comparing two language identification schemes, JADT 1995.
    """

    def __init__(
        self,
        *,
        keep: Annotated[tuple[str, ...], "languages, by their two letters"] = ("en",),
        least: Annotated[float, Fraction, "smallest p of the kept languages together"] = 0.5,
    ) -> None:
        if unknown := [name for name in keep if name not in (*_WORDS_OF, *_LETTERS_OF)]:
            raise _unknown_language(unknown[0])
        self.keep, self.least = keep, least

    def measure(self, text: str) -> dict[str, float]:
        """{language: p} of the languages that occur."""
        return probabilities(text)

    def judge(self, text: str, measure: dict[str, float]) -> Verdict:
        if sum(measure.get(name, 0.0) for name in self.keep) >= self.least:
            return Verdict(text)
        best = max(measure, key=lambda name: measure[name], default="")
        return Verdict(None, f"language {best}" if best and best not in self.keep else "no language recognized")


def probabilities(text: str) -> dict[str, float]:
    """{language: p} of the languages that are recognized in a text."""
    tokens = WORD.findall(text.lower())
    # A word that several languages share says less.
    scores = {name: sum(1 / _SHARED[t] for t in tokens if t in found) for name, found in _WORDS_OF.items()}
    letters = sum(c.isalpha() for c in text)
    counts = {name: len(pattern.findall(text)) for name, pattern in _LETTERS_OF.items()}
    # Kana is Japanese alone, and its Chinese characters belong to it; a few kana in a Chinese text are quotations.
    if counts["ja"] * 20 > counts["zh"]:
        counts["ja"], counts["zh"] = counts["ja"] + counts["zh"], 0
    # A function word is about every third word of a text, and these scripts have no other evidence.
    scores |= {name: count / max(1, letters) * max(1, len(tokens)) / 3 for name, count in counts.items()}
    total = sum(score**2 for score in scores.values())
    return {name: score**2 / total for name, score in scores.items() if score} if total else {}


def _unknown_language(name: str) -> UserError:
    known = [*_WORDS_OF, *_LETTERS_OF]
    return UserError(f"filter.language.keep: there is no language {name!r}{did_you_mean(name, known)}; "
                     f"there are {', '.join(known)}\n    try: filter.language.keep=[en]")  # fmt: skip
