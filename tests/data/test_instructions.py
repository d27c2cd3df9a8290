"""Self-instruct and evolved instructions: the measure of novelty, the filters, the cache, and a real model."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import ablatio

from ablatio import sources
from ablatio.errors import UserError
from ablatio.testing.sample_tables import SampleWriter
from ablatio_std.sources._instructions import Novelty, rouge_l, words_of

SEEDS = [
    {"instruction": f"Name {what} in one word.", "input": "", "output": answer}
    for what, answer in (("a bird", "Heron"), ("a river", "Rhine"), ("the longest month", "July"), ("a color", "Red"))
]


@pytest.fixture
def seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in SEEDS))
    return str(tmp_path / "seeds.jsonl")


def lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.slow
def test_rouge_l_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.text.rouge import rouge_score

    for a, b in (("Name a bird.", "Name two birds, a heron?"), ("Write 3 rhymes", "write 3 rhymes!")):
        theirs = rouge_score(a, b, rouge_keys="rougeL")["rougeL_fmeasure"].item()
        assert rouge_l(words_of(a), words_of(b)) == pytest.approx(theirs)


@pytest.mark.oracle("source=self_instruct", "ROUGE-L by a table of common subsequences, and by torchmetrics")
def test_rouge_l_is_that_of_a_table() -> None:
    draw = random.Random(0)
    for _ in range(60):
        a, b = ([draw.choice("abcdef") for _ in range(draw.randint(1, 80))] for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(2 * lcs(a, b) / (len(a) + len(b)))
    assert rouge_l([], ["a"]) == rouge_l(["a"], []) == 0
    novel = Novelty(0.7)
    novel.add("Name a bird in one word")
    assert not novel("Name a bird in a word") and novel("Write a story about rivers")


class Scripted:
    """A writer that continues prompts with given texts, and answers each task with its length."""

    digest = "scripted"

    def __init__(self, texts: list[str], answers: dict[str, str] | None = None) -> None:
        self.texts, self.answers, self.prompts = texts, answers or {}, list[str]()

    def longest(self, tokens: int) -> int:
        return 200

    def size(self, text: str) -> int:
        return len(text.split())

    def __call__(self, prompts: Any, tokens: int, temperature: float, seed: int) -> list[str]:
        self.prompts += prompts
        found = []
        for prompt in prompts:
            if prompt.endswith("Output:"):
                task = prompt.rpartition("Task: ")[2].partition("\nOutput:")[0]
                found.append(f" {self.answers.get(task, f'It has {len(task)} signs.')}\n\nTask: next")
            else:
                found.append(self.texts.pop(0) if self.texts else "")
        return found


def conversations(name: str, writer: Any, **knobs: Any) -> list[tuple[str, str]]:
    made: Any = sources.build(name, knobs, open_run=lambda path: writer)
    return [(c.messages[0].text, c.messages[1].text) for c in made.conversations()]


def test_self_instruct_keeps_what_is_new_and_usable(seeds: str, tmp_path: Path) -> None:
    texts = [
        " Write a rhyme about rain.\nTask 6: Name a bird in one word.\nTask 7: Draw a map of Rome.\nTask 8: cut of",
        " Write a rhyme about rain!\nTask 6: 42 is what?\nTask 7: Too short.\nTask 8: x", " Tell me why we sleep.\n",
        " Count the words of this line.\n",
    ]  # fmt: skip
    writer = Scripted(texts, {"Tell me why we sleep.": "", "Count the words of this line.": "Six."})
    found = conversations("self_instruct", writer, path=seeds, size=4, keep_seeds=False)
    assert found == [("Write a rhyme about rain.", "It has 25 signs."), ("Count the words of this line.", "Six.")]
    (facts,) = (tmp_path / "cache" / "instructions").glob("*/meta.json")
    dropped = json.loads(facts.read_text())["content"]["facts"]["dropped"]
    assert dropped == {
        "begins with no letter": 1, "known": 2, "no answer": 1, "not about text": 1, "too short or too long": 1,
    }  # fmt: skip
    asked = writer.prompts[0]
    assert asked.startswith("Come up with a series of tasks:\n\nTask 1: Name") and asked.endswith("\nTask 5:")
    count = len(writer.prompts)
    assert conversations("self_instruct", writer, path=seeds, size=4, keep_seeds=False) == found
    assert len(writer.prompts) == count  # the second pass reads the cache
    assert len(conversations("self_instruct", writer, path=seeds, size=4)) == 6


def test_evolved_instructions_replace_their_origin(seeds: str) -> None:
    text = "Name a bird that cannot fly, and explain why it lost its wings."
    writer = Scripted([text, "#Rewritten Prompt#: what?", "", "Name a color in one word."])
    found = conversations("evolved", writer, path=seeds, rounds=1, keep_seeds=False)
    assert found == [(text, "It has 63 signs.")]
    requests = [p for p in writer.prompts if not p.endswith("Output:")]
    assert len(requests) == 4 and all("#The Given Prompt#:\nName" in p for p in requests)
    silent = Scripted([text] * 4, {text: "Sorry, I cannot."})
    silent.digest = "another"
    assert conversations("evolved", silent, path=seeds, rounds=1, keep_seeds=False) == []


@pytest.mark.oracle("source=evolved", "counts over rounds of a writer that always has something new")
def test_instructions_evolve_over_rounds(seeds: str) -> None:
    counts = Counter[int]()
    for rounds in (1, 3):
        found = conversations("evolved", SampleWriter("a"), path=seeds, rounds=rounds, keep_seeds=False, novelty=1.0)
        counts[rounds] = len(found)
    assert 0 < counts[1] <= 4 < counts[3] <= 12


def test_bad_seeds_and_runs_are_named(seeds: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"task": "a"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: no seed task; its fields: task"):
        conversations("self_instruct", SampleWriter("a"), path=str(tmp_path / "bad.jsonl"))
    done = ablatio(["train", "task=sft", "source=self_instruct", f"source.path={seeds}"], tmp_path / "log")
    assert done.code == 2 and "source.run is empty" in done.err
    several: Any = sources.build("several", {"of": ["evolved"]})
    with pytest.raises(UserError, match="evolved needs a run"):
        list(several.conversations())


@pytest.mark.long
def test_a_tiny_model_writes_instructions_that_another_run_trains_on(seeds: str, tmp_path: Path) -> None:
    words = ("birds", "rivers", "rhymes", "houses", "colors", "months", "trees", "stories")
    lines = [f"Task {i % 9 + 1}: {verb} {n} {word}" for i, word in enumerate(words) for verb in ("Name", "List", "Draw")
             for n in ("two", "three", "some old")]  # fmt: skip
    random.Random(0).shuffle(lines)
    (tmp_path / "text.txt").write_text("\n".join(lines * 20))
    size = ["model.d_model=32", "model.n_layers=1", "model.n_heads=2", f"out={tmp_path}", "tokenizer=bytes"]
    done = ablatio(
        ["train", "source=text", f"source.path={tmp_path}/text.txt", "model.max_len=128", "train.steps=80",
         "train.batch_size=8", "optimizer.lr=1e-2", "train.val_every=null", "name=writer", *size], tmp_path / "log",
        seconds=600,
    )  # fmt: skip
    assert done.code == 0, done.err
    for name in ("self_instruct", "evolved"):
        knobs = [f"source={name}", f"source.run={tmp_path}/writer", f"source.path={seeds}", "source.tokens=40"]
        knobs += ["source.size=6"] if name == "self_instruct" else ["source.rounds=2", "source.novelty=0.95"]
        tuned = ["task=sft", "train.steps=2", "train.batch_size=2", "model.max_len=160", "data.val_fraction=0.4"]
        done = ablatio(["train", *knobs, *tuned, f"name={name}", *size], tmp_path / "log", seconds=600)
        assert done.code == 0, done.err
    written = [path.read_text().splitlines() for path in (tmp_path / "cache").glob("instructions/*/instructions.jsonl")]
    assert len(written) == 2 and max(map(len, written)) >= 3
