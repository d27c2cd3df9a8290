"""The final answer in a text."""

import re

MARKERS = re.compile(r"(?:the (?:final )?answer is|####)\s*:?\s*", re.I)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str) -> str:
    """Return what follows the last "the answer is" or "####", else the last number, else the first line.

    Of what follows a marker, its first number counts if it begins with one (a sign of money may stand before it), else
    its line up to the full stop.  Commas within numbers are dropped.
    """
    parts = MARKERS.split(text)
    if len(parts) > 1:
        rest = parts[-1].strip()
        number = NUMBER.match(rest.lstrip("$€£ "))
        return _plain(number.group()) if number else rest.split("\n")[0].strip().rstrip(".").strip()
    numbers = NUMBER.findall(text)
    if numbers:
        return _plain(numbers[-1])
    return text.strip().split("\n")[0].strip().rstrip(".")


def _plain(number: str) -> str:
    return number.replace(",", "").rstrip(".")
