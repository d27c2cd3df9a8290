"""A small learnable text for trainings that take seconds."""

from pathlib import Path

WORDS = [
    "the",
    "people",
    "of",
    "a",
    "great",
    "nation",
    "want",
    "peace",
    "and",
    "work",
    "for",
    "all",
    "who",
    "live",
    "in",
    "it",
]


def small_text(path: Path) -> Path:
    """Write 60 documents of 80 words, separated by blank lines; document n repeats a pattern of stride n % 7 + 1."""
    documents = []
    for number in range(60):
        order = [WORDS[(i * (number % 7 + 1) + number) % len(WORDS)] for i in range(80)]
        documents.append(" ".join(order) + ".")
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path
