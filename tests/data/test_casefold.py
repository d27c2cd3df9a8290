"""Case folding against a loop over characters, on any text."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablatio import tokenizers
from ablatio.errors import DamagedFile
from ablatio_std.tokenizers._case import folded, unfolded

TEXTS = st.text() | st.text(alphabet="abAB \n.0\x0e\x0fÉéßẞİıſΣσςЖжK", max_size=40)
CORPUS = ["The people of the USA. THE END of the people\n" * 8, "the end. The States, the states and THE STATES " * 8]


def letter_by_letter(written: str) -> str:
    """Restore the case, reading one character after another."""
    text, capital, word = "", False, False
    rest = list(written)
    while rest:
        c = rest.pop(0)
        if c in "\x0e\x0f":
            if rest and rest[0] == "0":
                text, capital, _ = text + c, False, rest.pop(0)
            else:
                capital, word = True, c == "\x0f"
                if rest and rest[0] == " ":
                    text += rest.pop(0)
            continue
        big = c.upper()
        capital = (
            capital and big != c and big.lower() == c and ord(big) < 0x587 and len(big.encode()) == len(c.encode())
        )
        text += big if capital else c
        capital = capital and word
    return text


@pytest.mark.oracle("tokenizer=casefold_bpe", "a loop over characters restores the case")
@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("The USA's NASA-Ab aB ABc \x0e0\x0fA")
def test_any_text_comes_back_from_its_folded_form(text: str) -> None:
    written = folded(text)
    assert unfolded(written) == text == letter_by_letter(written)
    assert not any("A" <= c <= "Z" for c in written)
    marks = written.count("\x0e") + written.count("\x0f")
    assert len(written.encode()) - marks == len(text.encode())


def test_how_a_text_is_written() -> None:
    assert folded("The USA, a B") == "\x0ethe\x0f usa, a\x0e b"
    assert folded("ABc") == "\x0ea\x0ebc"  # a word in capitals ends before a letter that is none
    assert folded("İ ẞ \u212a") == "İ ẞ \u212a"  # letters without a small form of as many bytes
    assert unfolded("x\x0e. \x0f") == "x. "  # marks that a model writes before no letter


@pytest.fixture(scope="module")
def trained():
    made = tokenizers.build("casefold_bpe", {"vocab_size": 300})
    made.train(CORPUS)
    return made


def test_words_share_their_tokens(trained) -> None:
    the, capital, whole = (trained.encode([f"x {word}"])[0].tolist() for word in ("the", "The", "THE"))
    assert the[-1] == capital[-1] == whole[-1]
    assert trained.token_bytes()[the[-1]] == 4


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_any_text_round_trips_and_its_bytes_are_counted(trained, text: str) -> None:
    for encode in (trained.encode, trained.encode_train):
        (ids,) = encode([text])
        assert trained.decode(ids.tolist()) == text
        assert trained.token_bytes()[ids].sum() == len(text.encode())


def test_a_word_in_a_case_that_training_did_not_have_takes_fewer_tokens(trained) -> None:
    plain = tokenizers.build("bpe", {"vocab_size": 300})
    plain.train(CORPUS)
    text = ["OF the PEOPLE, Of The People"]
    assert len(trained.encode(text)[0]) < len(plain.encode(text)[0])


def test_state_is_its_own(trained) -> None:
    state = trained.state()
    assert json.loads(state)["case"] == "folded"
    again = tokenizers.build("casefold_bpe", {"vocab_size": 300})
    again.restore(state)
    assert np.array_equal(again.encode(CORPUS)[0], trained.encode(CORPUS)[0])
    with pytest.raises(DamagedFile, match="settings"):
        tokenizers.build("bpe", {"vocab_size": 300}).restore(state)


def test_dropout_keeps_the_text() -> None:
    made = tokenizers.build("casefold_bpe", {"vocab_size": 300, "dropout": 0.3})
    made.train(CORPUS)
    (ids,) = made.encode_train(CORPUS[:1])
    assert made.decode(ids.tolist()) == CORPUS[0] and len(ids) > len(made.encode(CORPUS[:1])[0])
