"""Sample documents for filters: prose, and texts with each of the faults that filters look for."""

import random
from collections.abc import Iterator

_TEXT = """
the of and to in that is was for it with as be on have this by year people government state country law peace war
work report congress great public service question money trade nation treaty interest great power time system land
"""
_WORDS = _TEXT.split()


def sentence(chance: random.Random, length: int) -> str:
    """A sentence of this many words."""
    drawn = [chance.choice(_WORDS) for _ in range(length)]
    return f"{' '.join(drawn).capitalize()}."


def prose(seed: int, sentences: int = 9) -> str:
    """A document of sentences, in paragraphs of three, that repeats nothing."""
    chance = random.Random(seed)
    made = [sentence(chance, chance.randint(8, 16)) for _ in range(sentences)]
    return "\n\n".join(" ".join(made[i : i + 3]) for i in range(0, sentences, 3))


def held_out() -> list[str]:
    """Held-out documents; one of the training documents contains a part of the first."""
    return [prose(900), prose(901), "A short held-out text."]


def training() -> list[str]:
    """Training documents: twelve of plain prose, and two dozen with a fault, or near a threshold."""
    return [*(prose(seed, 6 + seed % 7) for seed in range(12)), *_faulty()]


def _faulty() -> Iterator[str]:
    base, other = prose(0, 6), prose(50, 12)
    sentences = other.replace("\n\n", " ").split(". ")
    yield base  # an exact copy of the first document
    yield base.upper()
    yield base.replace("the", "a", 2)  # nearly the same words
    yield base.replace("to", "a", 9)
    yield f"{prose(51)} {'. '.join(sentences[:4])}. {prose(52)}"  # shares four sentences with the next
    yield other
    yield f"{prose(53)}\n\n{prose(900)}"  # held-out text
    yield f"{prose(54)} {' '.join(prose(901).split()[:16])}"
    yield "Too short."
    yield prose(55, 90)
    yield "the of and to a in is it be on " * 12  # short words, repeated
    yield " ".join(f"{w}{w}{w}{w}" for w in prose(56).split())
    yield " ".join(f"{w} #" if i % 4 == 0 else w for i, w in enumerate(prose(57).split()))
    yield " ".join(f"{w} #" if i % 14 == 0 else w for i, w in enumerate(prose(58).split()))
    yield "\n".join(f"- {line}" for line in prose(59).replace(". ", ".\n").splitlines())
    yield "\n".join(f"{line}..." for line in prose(60).replace(". ", ".\n").splitlines())
    yield " ".join(f"{i * 37}" if i % 3 == 0 else w for i, w in enumerate(prose(61).split()))
    yield "\n".join([*prose(62).splitlines(), *["The same line again and again in this one text."] * 9])
    yield f"{prose(63)} Lorem ipsum dolor sit amet."
    yield f"<html><!-- menu --><p>{prose(64)}</p><br/>Fish &amp; chips\nUse of cookies on this page\nHome\n{prose(65)}"
    yield f"{prose(66)} Write to jane.doe@example.org or call +1 202-555-0143 or (202) 555-0144 from 192.168.10.1."
    yield f"{prose(67)} Card 4111 1111 1111 1111, IBAN GB82 WEST 1234 5698 7654 32, SSN 078-05-1120, 12 Main Street."
    yield f"{prose(68)} You stupid idiot, this is damn bullshit. {prose(69)}"
    yield f"{prose(70)} It does not matter a damn."
    yield (
        "Die Regierung hat dem Kongress einen Bericht über den Handel und die Arbeit der Menschen in dem Land gegeben. "
        * 3
    )
    yield "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？" * 4
