"""Reversible case folding: capitals become small letters after a mark (capcode, alasdairforsythe/capcode)."""

import re

NEXT, WORD = "\x0e", "\x0f"  # the next letter is a capital; all letters up to the first other character are
MARKS = NEXT + WORD
_PLAIN = "0"  # after a mark: the mark itself stands in the text; nothing else writes a mark before a digit

# Latin, Greek, Cyrillic and Armenian: later versions of Unicode add no pairs there, so that saved ids keep their text.
_SMALL = {c: c.lower() for c in map(chr, range(0x587)) if c.lower() != c and c.lower().upper() == c}
# The same number of bytes, so that bits per byte count the bytes of the text.
_SMALL = {big: small for big, small in _SMALL.items() if len(small) == 1 and len(small.encode()) == len(big.encode())}
_TO_SMALL, _TO_BIG = str.maketrans(_SMALL), str.maketrans({small: big for big, small in _SMALL.items()})
_BIG_LETTERS, _SMALL_LETTERS = "".join(_SMALL), "".join(_SMALL.values())
_FOLD = re.compile(f"[{MARKS}]|( ?)([{_BIG_LETTERS}]{{2,}})(?![{_BIG_LETTERS}{_SMALL_LETTERS}])|( ?)([{_BIG_LETTERS}])")
_UNFOLD = re.compile(f"([{MARKS}]){_PLAIN}|{WORD}( ?)([{_SMALL_LETTERS}]+)|{NEXT}( ?)([{_SMALL_LETTERS}])|[{MARKS}]")


def folded(text: str) -> str:
    """Return the text without capitals: "The USA" -> NEXT + "the" + WORD + " usa".  A mark stands before the space."""
    return _FOLD.sub(_fold, text)


def unfolded(text: str) -> str:
    """Return the text that `folded` made this of; a mark before no letter, as a model may write it, is left out."""
    return _UNFOLD.sub(_unfold, text)


def _fold(found: re.Match[str]) -> str:
    if found[2]:
        return WORD + found[1] + found[2].translate(_TO_SMALL)
    return NEXT + found[3] + found[4].translate(_TO_SMALL) if found[4] else found[0] + _PLAIN


def _unfold(found: re.Match[str]) -> str:
    if found[1]:
        return found[1]
    space, letters = (found[2], found[3]) if found[3] else (found[4], found[5])
    return space + letters.translate(_TO_BIG) if letters else ""
