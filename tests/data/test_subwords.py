"""WordPiece, unigram, and the knobs of BPE: against the tokenizers library, SentencePiece and explicit loops."""

import hashlib
import io
import itertools
import json
import math
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf

from ablatio import tokenizers
from ablatio.errors import DamagedFile, UserError
from ablatio.testing.sample_files import TEXTS
from ablatio_std.tokenizers._common import BYTE_OF
from ablatio_std.tokenizers._learned import byte_words
from ablatio_std.tokenizers.trained import BPE
from ablatio_std.tokenizers.unigram import Unigram
from ablatio_std.tokenizers.wordpiece import INSIDE, WordPiece

SYLLABLES = ["la", "we", "pe", "op", "le", "fr", "ee", "s", "ing", "ed", "tion", "con", "de", "ment"]


def corpus(n: int = 40, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(300)]
    weights = [1 / (i + 1) for i in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=200)) + f" {draw.randrange(10**6)} naïve 世界" for _ in range(n)]


CORPUS = corpus()


@pytest.fixture(scope="module")
def wordpiece() -> WordPiece:
    made = WordPiece(vocab_size=700)
    made.train(CORPUS)
    return made


@pytest.fixture(scope="module")
def unigram() -> Unigram:
    made = Unigram(vocab_size=500)
    made.train(CORPUS)
    return made


def words(text: str) -> list[str]:
    return [word for word, _ in byte_words().pre_tokenize_str(text)]


@pytest.mark.oracle("tokenizer=wordpiece", "a loop that takes the longest known piece, as in BERT")
def test_wordpiece_by_hand(wordpiece: WordPiece) -> None:
    vocab = {token: i for i, token in enumerate(json.loads(wordpiece.state())["tokens"])}
    for text in (*TEXTS, *corpus(3, 9)):
        expected = []
        for word in words(text):
            start = 0
            while start < len(word):
                prefix = INSIDE if start else ""
                end = next(e for e in range(len(word), start, -1) if prefix + word[start:e] in vocab)
                expected.append(vocab[prefix + word[start:end]])
                start = end
        assert wordpiece.encode([text])[0].tolist() == expected


def test_wordpiece_learns_frequent_words(wordpiece: WordPiece) -> None:
    frequent = [word for word, _ in Counter(w for text in CORPUS for w in words(text)).most_common(20)]
    assert all(len(wordpiece.encode([word.replace("Ġ", " ")])[0]) == 1 for word in frequent)
    assert len(wordpiece.encode(["x" * 500])[0]) <= 500  # long words are split, not unknown


@pytest.mark.oracle("tokenizer=unigram", "Viterbi's recursion, and the trainer of the tokenizers library")
def test_unigram_by_hand(unigram: Unigram) -> None:
    """The ids are those of the segmentation with the highest sum of log-probabilities."""
    pieces: dict[str, float] = dict(json.loads(unigram.state())["pieces"])
    ids = {piece: i for i, piece in enumerate(pieces)}
    for text in (*TEXTS[2:6], *corpus(3, 9)):
        total, found = 0.0, unigram.encode([text])[0].tolist()
        for word in words(text):
            best = [0.0, *[-math.inf] * len(word)]
            for end in range(1, len(word) + 1):
                best[end] = max(best[s] + pieces.get(word[s:end], -math.inf) for s in range(end))
            total += best[-1]
        assert sum(list(pieces.values())[i] for i in found) == pytest.approx(total, abs=1e-6)
        assert all(0 <= i < len(ids) for i in found)


def test_unigram_fits_as_well_as_the_library(unigram: Unigram) -> None:
    """Fewer tokens than, or within 2 % of, the library's own trainer, which gives other scores in each process."""
    theirs = hf.Tokenizer(hf.models.Unigram())
    theirs.pre_tokenizer = byte_words()
    trainer = hf.trainers.UnigramTrainer(vocab_size=499, initial_alphabet=sorted(BYTE_OF), show_progress=False)
    theirs.train_from_iterator(CORPUS, trainer)
    fresh = corpus(10, 0)
    ours = sum(map(len, unigram.encode(fresh)))
    assert ours <= 1.02 * sum(len(theirs.encode(text).ids) for text in fresh)


@pytest.mark.parametrize("kind", [WordPiece, Unigram])
def test_small_corpora_and_states(kind: Any) -> None:
    small = kind(vocab_size=2000)
    small.train(["ab ab ab"])
    assert small.decode(small.encode(["ab c"])[0]) == "ab c" and small.fast("<end>").encode("ab").ids[0] == 1999
    fresh = kind(vocab_size=2000)
    fresh.restore(small.state())
    assert fresh.state() == small.state()
    empty = kind(vocab_size=600)
    empty.train([])
    assert empty.decode(empty.encode(["naïve"])[0]) == "naïve"
    for state in ("", "{}", "[]", '{"tokenizer": "bpe"}', small.state().replace('"!"', '"?"', 1)):
        with pytest.raises(DamagedFile):
            kind(vocab_size=2000).restore(state)
    with pytest.raises(DamagedFile, match="does not fit"):
        kind(vocab_size={WordPiece: 513, Unigram: 257}[kind]).restore(small.state())


@pytest.mark.parametrize("knobs", [
    {"digits": True}, {"byte_fallback": True}, {"normalize": "nfkc"}, {"byte_fallback": True, "digits": True},
    {"byte_fallback": True, "normalize": "nfkc"},
])  # fmt: skip
def test_knobs_of_bpe_come_back(knobs: dict[str, Any]) -> None:
    """Every text comes back, normalized if asked for; the exported tokenizer gives the same ids."""
    made = BPE(vocab_size=700, **knobs)
    made.train([*CORPUS, "<0x41><0x42> " * 50])
    exported = made.fast("<end>")
    for text in (*TEXTS, "<0x41> 1234 ① ﬁ", *CORPUS[:2]):
        expected = unicodedata.normalize("NFKC", text) if "normalize" in knobs else text
        (ids,) = made.encode([text])
        assert made.decode(ids) == expected and made.token_bytes()[ids].sum() == len(expected.encode())
        assert exported.encode(text).ids == [made.eos, *ids.tolist()]
        assert exported.decode(ids.tolist()) == expected
        if knobs.get("digits"):
            pieces = [made.decode([i]) for i in ids.tolist()]
            assert all(len(piece) == 1 for piece in pieces if any(c in "0123456789" for c in piece))
    fresh = BPE(vocab_size=700, **knobs)
    fresh.restore(made.state())
    assert fresh.state() == made.state()
    with pytest.raises(DamagedFile, match="settings"):
        BPE(vocab_size=700).restore(made.state())


def test_default_state_is_that_of_earlier_versions() -> None:
    made = BPE(vocab_size=300)
    made.train(CORPUS[:3])
    assert list(json.loads(made.state())) == ["tokenizer", "vocab", "merges"]


def test_byte_fallback_writes_rare_characters_as_bytes() -> None:
    made = BPE(vocab_size=600, byte_fallback=True)
    made.train(CORPUS)
    vocab = json.loads(made.state())["vocab"]
    assert made.encode(["é"])[0].tolist() == [vocab["<0xC3>"], vocab["<0xA9>"]]
    assert made.encode(["a"])[0].tolist() == [vocab["a"]] and vocab["a"] >= 256
    with pytest.raises(UserError, match="at least 513 ids"):
        BPE(vocab_size=400, byte_fallback=True)


def dropped(word: str, rank: dict[tuple[str, str], int], p: float, draw: random.Random) -> list[str]:
    """The procedure of subword-nmt's apply_bpe."""
    tokens = list(word)
    while len(tokens) > 1:
        pairs = [
            (rank[pair], i, pair)
            for i, pair in enumerate(itertools.pairwise(tokens))
            if draw.random() > p and pair in rank
        ]
        if not pairs:
            break
        bigram = min(pairs)[2]
        new, i = list[str](), 0
        for j in [i for _, i, pair in pairs if pair == bigram]:
            if j >= i:
                new.extend(tokens[i:j])
                new.append("".join(bigram))
                i = j + 2
        new.extend(tokens[i:])
        tokens = new
    return tokens


@pytest.mark.oracle("tokenizer=bpe", "dropout as in subword-nmt, in the mean")
def test_dropout_is_that_of_its_authors_in_the_mean() -> None:
    """Tokens at several probabilities; text and held-out ids are those without dropout."""
    plain = BPE(vocab_size=600)
    plain.train(CORPUS)
    rank = {pair: i for i, pair in enumerate(plain._merges)}
    for p in (0.1, 0.5):
        ours = BPE(vocab_size=600, dropout=p)
        ours.restore(plain.state().replace('"merges"', f'"dropout": {p}, "merges"'))
        count, draw = sum(map(len, ours.encode_train(CORPUS))), random.Random(1)
        reference = sum(len(dropped(word, rank, p, draw)) for text in CORPUS for word in words(text))
        assert abs(count / reference - 1) < 0.02
        assert [i.tolist() for i in ours.encode(CORPUS)] == [i.tolist() for i in plain.encode(CORPUS)]
        again = BPE(vocab_size=600, dropout=p)
        again.restore(ours.state())
        assert again.encode_train([CORPUS[3]])[0].tolist() == ours.encode_train(CORPUS[:4])[3].tolist()
        assert ours.decode(ours.encode_train(CORPUS[:1])[0]) == CORPUS[0]


SCRIPT = """
import hashlib, sys
sys.path.insert(0, {folder!r})
import test_subwords as t
for kind, size in ((t.WordPiece, 700), (t.Unigram, 400)):
    made = kind(vocab_size=size)
    made.train(t.CORPUS[:10])
    print(hashlib.sha256(made.state().encode()).hexdigest())
"""


def test_training_is_the_same_in_every_process() -> None:
    outputs = set()
    for seed in ("0", "7"):
        env = os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"}
        script = SCRIPT.format(folder=str(Path(__file__).parent))
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
        outputs.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(outputs) == 1


@pytest.mark.oracle("tokenizer=pretrained", "sentencepiece on its own model files")
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("settings", [
    {}, {"byte_fallback": True, "character_coverage": 0.99, "split_digits": True},
    {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False,
     "byte_fallback": True},
])  # fmt: skip
def test_sentencepiece_files_give_the_ids_of_sentencepiece(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        vocab_size=450,
        model_type=kind,
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        ours = tokenizers.build("pretrained", {"path": str(path)})
        assert ours.vocab_size == theirs.vocab_size() and ours.eos == theirs.eos_id()
        for text in (*TEXTS, *CORPUS[:5]):
            if "<s>" not in text and "\x00" not in text:  # sentencepiece takes <s> for its sign
                assert ours.encode([text])[0].tolist() == theirs.encode(text), text


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    for data in (b"", b"\x0a", b"no model at all", b"\x0a\x05\x0a\x03abc" * 3 + b"\xff"):
        (tmp_path / "a.model").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.model: not a SentencePiece model"):
            tokenizers.build("pretrained", {"path": str(tmp_path / "a.model")})


@pytest.mark.oracle("tokenizer=pretrained", "the tokenizers library on its own file")
def test_any_file_of_the_tokenizers_library(tmp_path: Path) -> None:
    theirs = hf.Tokenizer(hf.models.WordLevel({"<eos>": 0, "the": 1, "law": 2, "?": 3}, unk_token="?"))
    theirs.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    theirs.add_special_tokens(["<eos>"])
    theirs.save(str(tmp_path / "words.json"))
    ours = tokenizers.build("pretrained", {"path": str(tmp_path / "words.json")})
    assert ours.encode(["the law of"])[0].tolist() == theirs.encode("the law of").ids == [1, 2, 3] and ours.eos == 0


def test_counts_of_bytes_cover_the_vocabulary(wordpiece: WordPiece, unigram: Unigram) -> None:
    for made in (wordpiece, unigram):
        width = made.token_bytes()
        assert width.shape == (made.vocab_size,) and width[made.eos] == 0 and width[:256].tolist() == [1] * 256
        assert made.decode(range(made.vocab_size)) is not None
        joined = list(itertools.chain.from_iterable(ids.tolist() for ids in made.encode(CORPUS)))
        assert int(width[np.array(joined)].sum()) == sum(len(text.encode()) for text in CORPUS)
