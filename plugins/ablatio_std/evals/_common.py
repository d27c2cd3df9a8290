"""Shared code of the capability probes: seeds and words."""

import random
from typing import Annotated

from ablatio import NonNegative, Positive

Count = Annotated[int, Positive, "number of items"]
Seed = Annotated[int, NonNegative, "of the random draws"]

# Frequent English words without a common beginning, so that most tokenizers give them one or two tokens.
WORDS = (
    "time", "people", "water", "house", "light", "world", "night", "story", "money", "music", "paper", "river",
    "stone", "green", "table", "voice", "apple", "bread", "cloud", "dream", "earth", "field", "glass", "horse",
    "island", "judge", "king", "lemon", "moon", "north", "ocean", "plant", "queen", "road", "ship", "train", "uncle",
    "village", "wind", "year", "zero", "bird", "city", "door", "engine", "fire", "garden", "hand", "iron", "jacket",
)  # fmt: skip


def draws(name: str, seed: int) -> random.Random:
    """Random numbers of one evaluation: the same on every machine and in every run."""
    return random.Random(f"{name}/{seed}")
