"""Tokenizers: lossless, deterministic, and no text encodes to eos."""

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import ablatio_std.tokenizers.trained as module
from ablatio import tokenizers
from ablatio.errors import DamagedFile
from ablatio_std.tokenizers import _chunks
from ablatio_std.tokenizers.pretrained import pretrained
from ablatio_std.tokenizers.trained import BPE, Bytes, Symbols
from ablatio_std.tokenizers.unigram import Unigram
from ablatio_std.tokenizers.wordpiece import WordPiece

TEXTS = st.text() | st.text(alphabet=" \n\t\r\x1c\x85\xa0　ab'sS1.é世🙂", max_size=60)


@pytest.fixture(params=["bytes", "symbols", "bpe", "bpe untrained"])
def tokenizer(request: pytest.FixtureRequest, small_bpe: BPE) -> Any:
    made = {"bytes": Bytes(), "symbols": Symbols(), "bpe": small_bpe, "bpe untrained": BPE(vocab_size=300)}
    return made[request.param]


@pytest.mark.oracle("tokenizer", "its own inverse (any text comes back)")
def test_any_text_round_trips_and_its_bytes_are_counted(tokenizer: Any) -> None:
    width = tokenizer.token_bytes()
    assert width.shape == (tokenizer.vocab_size,) and width[tokenizer.eos] == 0

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text
        assert width[ids].sum() == len(text.encode())
        assert tokenizer.eos not in ids

    check()


@pytest.mark.oracle("tokenizer=bytes", "str.encode")
@pytest.mark.oracle("tokenizer=symbols", "hexadecimal digits of str.encode")
@given(TEXTS)
def test_bytes_and_symbols_by_hand(text: str) -> None:
    assert Bytes().encode([text])[0].tolist() == list(text.encode())
    alphabet, expected = Symbols().alphabet, []
    for character in text:
        if character in alphabet:
            expected.append(alphabet.index(character))
        else:
            digits = [int(digit, 16) for digit in character.encode().hex()]
            expected += [len(alphabet) + digit + 16 * (i % 2) for i, digit in enumerate(digits)]
    assert Symbols().encode([text])[0].tolist() == expected


def joined_by(word: list[str], left: str, right: str) -> list[str]:
    made, i = [], 0
    while i < len(word):
        both = word[i : i + 2] == [left, right]
        made.append(left + right if both else word[i])
        i += 1 + both
    return made


@pytest.mark.oracle("tokenizer=bpe", "a loop over merges, pairs counted anew for each")
def test_bpe_by_hand() -> None:
    """Each merge joins the most frequent adjacent pair in the words; applying the merges in order gives the ids."""
    draw = random.Random(0)
    known = ["".join(draw.choices("abcde", k=draw.randint(1, 7))) for _ in range(60)]
    text = " ".join(draw.choices(known, k=2000))
    tokenizer = BPE(vocab_size=257 + 80)
    tokenizer.train([text])
    state = json.loads(tokenizer.state())
    words = [list(("Ġ" if i else "") + word) for i, word in enumerate(text.split(" "))]  # Ġ stands for the space
    assert len(state["merges"]) == 80
    for left, right in state["merges"]:
        counts = Counter(pair for word in words for pair in itertools.pairwise(word))
        assert counts[left, right] == max(counts.values())
        words = [joined_by(word, left, right) for word in words]
    ids = [state["vocab"][symbol] for word in words for symbol in word]
    assert tokenizer.encode([text])[0].tolist() == ids


@pytest.mark.parametrize("text", ["<eos>", "</s>", "<|endoftext|>", "eos", "[EOS]", "\x00", "\x03\x04", "�", ""])
def test_no_literal_text_encodes_to_eos(tokenizer: Any, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    assert tokenizer.eos not in ids and tokenizer.decode(ids) == text


def test_every_unicode_block_round_trips(tokenizer: Any) -> None:
    text = "".join(chr(c) for c in range(0, 0x110000, 37) if not 0xD800 <= c < 0xE000)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text


def test_eos_and_unused_ids_decode_to_the_empty_string(tokenizer: Any) -> None:
    (ids,) = tokenizer.encode(["a law"])
    assert tokenizer.decode([tokenizer.eos, *ids, tokenizer.eos]) == "a law"
    assert tokenizer.decode(range(tokenizer.vocab_size)) is not None


def test_batch_encoding_equals_text_by_text(tokenizer: Any) -> None:
    texts = ["the law", "", "of a people", "\n\n"]
    together = tokenizer.encode(texts)
    assert [ids.tolist() for ids in together] == [tokenizer.encode([text])[0].tolist() for text in texts]
    assert tokenizer.encode([]) == []


def test_state_restores_the_tokenizer(small_bpe: BPE) -> None:
    other = BPE(vocab_size=320)
    other.restore(small_bpe.state())
    text = "the law of a free people, naïve 世界 🙂"
    assert other.state() == small_bpe.state()
    assert other.encode([text])[0].tolist() == small_bpe.encode([text])[0].tolist()
    assert (other.token_bytes() == small_bpe.token_bytes()).all()
    assert small_bpe.encode([text])[0].size < 0.7 * len(text.encode())  # it has learned something


@pytest.mark.parametrize("state", ["", "{}", "[]", "null", '{"vocab": {}, "merges": []}', '{"vocab": 1, "merges": 2}'])
def test_invalid_state_is_refused(state: str, small_bpe: BPE) -> None:
    for tokenizer in (BPE(vocab_size=320), Bytes()):
        with pytest.raises(DamagedFile):
            tokenizer.restore(state)
    with pytest.raises(DamagedFile, match="vocab_size=270"):
        BPE(vocab_size=270).restore(small_bpe.state())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda known: known["merges"].append(["a", "\u0100\u0101\u0102\u0103"]), "not in the vocabulary"),
        (lambda known: known["merges"].append(["a"]), "ValueError"),
        (lambda known: known["vocab"].update({"世": len(known["vocab"])}), "does not stand for a byte"),
        (lambda known: known["vocab"].popitem(), "not in the vocabulary"),
        (lambda known: known["vocab"].update(a=-1), "ids does not fit"),
        (lambda known: known["vocab"].update(a="b"), "TypeError"),
        (lambda known: known.pop("merges"), "KeyError"),
    ],
)
def test_damaged_vocabulary_is_refused_on_restore(change: Any, said: str, small_bpe: BPE) -> None:
    known = json.loads(small_bpe.state())
    change(known)
    with pytest.raises(DamagedFile, match=said):
        BPE(vocab_size=320).restore(json.dumps(known))


def test_cached_tokens_need_no_library_tokenizer(small_bpe: BPE, monkeypatch: pytest.MonkeyPatch) -> None:
    state, made = small_bpe.state(), []
    monkeypatch.setattr(module, "_bpe", lambda *known, real=module._bpe: made.append(1) or real(*known))
    other = BPE(vocab_size=320)
    other.restore(state)
    assert other.state() == state and other.token_bytes().sum() and other.decode([0, 1]) and not made
    assert other.encode(["a text"])[0].tolist() == small_bpe.encode(["a text"])[0].tolist() and made


@pytest.fixture(scope="module")
def all_words(small_bpe: BPE, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers that remember the ids of words: of each kind, and one read from a file."""
    kinds = {
        "digits": BPE(vocab_size=400, digits=True),
        "characters": BPE(vocab_size=600, byte_fallback=True, normalize="nfkc"),
        "wordpiece": WordPiece(vocab_size=600),
        "unigram": Unigram(vocab_size=400),
    }
    for made in kinds.values():
        made.train(["the 12 bees, the  trees\nand 1234 seas\n\n  the end", "abs ab's 世 ab. S1 sS1 \t ab é"] * 9)
    file = tmp_path_factory.mktemp("file") / "tokenizer.json"
    kinds["digits"].fast("<end>").save(str(file))
    return {**kinds, "bpe": small_bpe, "file": pretrained(path=str(file), eos="<end>")}


@pytest.mark.oracle("tokenizer=bpe", "tokenizers library on the whole text")
@pytest.mark.oracle("tokenizer=wordpiece", "tokenizers library on the whole text")
@pytest.mark.oracle("tokenizer=unigram", "tokenizers library on the whole text")
@pytest.mark.oracle("tokenizer=pretrained", "tokenizers library on the whole text")
@pytest.mark.parametrize("kind", ["bpe", "digits", "characters", "wordpiece", "unigram", "file"])
def test_words_encoded_once_equal_the_whole_text(
    kind: str, all_words: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "_PIECE": 3,
        "_AT_ONCE": 2,
        "_TOGETHER": 9,
        "_TRIAL": 12,
        "_WHOLE": (9, 30),
        "_CHARACTERS": 20,
    }.items():
        monkeypatch.setattr(_chunks, name, value)
    made = all_words[kind]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(TEXTS, max_size=6))
    def check(texts: list[str]) -> None:
        assert ["".join(_chunks.pieces_of(text)) for text in texts] == texts
        found = [ids.tolist() for ids in made.encode(texts)]
        assert found == [made._model.encode(text, add_special_tokens=False).ids for text in texts]

    check()


def test_words_are_remembered_within_a_bound(small_bpe: BPE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "_CHARACTERS", 2000)
    monkeypatch.setattr(_chunks, "_TRIAL", 500)
    counted = Counting(small_bpe._model)
    encode = _chunks.ByChunks(cast(Any, counted), small_bpe.token_bytes())
    encode(["the same words and words"] * 50)
    assert counted.characters == len("the same words and")  # each chunk once
    for number in range(100):
        encode([f"{number} and {number + 7} bees", *["bees and words"] * 50])
        assert sum(map(len, encode._known)) <= 2000 + 1000
    counted.characters = 0
    strings = [f"{number:030x}" for number in range(20_000)]
    encode(strings)
    assert counted.characters == 600_000  # none twice
    assert len(encode._known.keys() & set(strings)) < 2000  # nothing repeats: most are encoded as whole texts


class Counting:
    """Counts the characters that the library encodes."""

    def __init__(self, model: Any) -> None:
        self.model, self.characters = model, 0

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.characters += sum(map(len, texts))
        return self.model.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("change", [
    lambda model: setattr(model, "pre_tokenizer", hf.pre_tokenizers.ByteLevel(add_prefix_space=True)),
    lambda model: setattr(model, "pre_tokenizer", hf.pre_tokenizers.ByteLevel(use_regex=False)),
    lambda model: setattr(model, "pre_tokenizer", hf.pre_tokenizers.Metaspace()),
    lambda model: setattr(model, "normalizer", hf.normalizers.Strip()),
    lambda model: model.add_tokens(["two words"]),
    lambda model: setattr(model.model, "dropout", 0.5),
])  # fmt: skip
def test_other_words_are_encoded_as_whole_texts(change: Any, small_bpe: BPE) -> None:
    model = small_bpe.fast("<end>")
    assert _chunks.has_words_of_gpt2(model)
    change(model)
    assert not _chunks.has_words_of_gpt2(model)


def test_corpus_with_few_pairs_leaves_ids_unused() -> None:
    tokenizer = BPE(vocab_size=1000)
    tokenizer.train(["ab ab ab"])
    assert (tokenizer.vocab_size, tokenizer.eos) == (1000, 999)
    assert (tokenizer.token_bytes()[300:] == 0).all()
    assert tokenizer.decode(tokenizer.encode(["ab c"])[0]) == "ab c"


def test_without_merges_bpe_is_bytes() -> None:
    tokenizer = BPE(vocab_size=257)
    tokenizer.train(["the law of the land"])
    assert tokenizer.encode(["the law"])[0].size == 7


def test_token_type_is_as_small_as_possible() -> None:
    assert Bytes().encode(["a"])[0].dtype == np.uint16
    assert BPE(vocab_size=1 << 16).encode(["a"])[0].dtype == np.uint16
    assert BPE(vocab_size=(1 << 16) + 1).encode(["a"])[0].dtype == np.uint32


def test_registry_passes_knobs() -> None:
    assert tokenizers.build("bpe", {"vocab_size": 400}).vocab_size == 400
    assert tokenizers.build("bytes").vocab_size == 257
    assert tokenizers["bpe"].facts["trained"] and not tokenizers["bytes"].facts["trained"]


SCRIPT = """
import random
from ablatio_std.tokenizers.trained import BPE
draw = random.Random(5)
words = ["".join(draw.choices("etaoin世", k=draw.randint(1, 6))) for _ in range(400)]
tokenizer = BPE(vocab_size=600)
tokenizer.train(" ".join(draw.choices(words, k=200)) for _ in range(30))
print(tokenizer.state())
"""


def test_training_is_deterministic_across_processes() -> None:
    states = set()
    for hash_seed, threads in (("0", "1"), ("7", "4")):
        env = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "RAYON_NUM_THREADS": threads,
            "PYTHONUTF8": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, check=True)
        states.add(hashlib.sha256(done.stdout).hexdigest())
        assert len(json.loads(done.stdout)["merges"]) > 100
    assert len(states) == 1
