"""Items, responses and texts with which evaluations and metrics are tested, without a model."""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablatio.data.items import Item, Likelihood, Request, Respond, Response, Scored
from ablatio.model.evaluation.measure import Measure, built
from ablatio.registry.registry import REGISTRIES, PartSpec

QUESTIONS = (
    # question, correct answer, choices
    ("How many are 12 and 30?", "42", ("41", "42", "12 and 30")),
    ("The capital of France is", "Paris", ("Paris", "the city of Lyon", "Rome")),
    ("A quick brown fox jumps over", "the lazy dog", ("the lazy dog", "a fence", "Größe")),
    ("What is 1,000 minus 993?", "7", ("8", "993", "7")),
    ("Which letter comes first?", "A", ("B", "A", "C")),
    ("Name a color of the sky.", "It is blue, often.", ("blue", "It is blue, often.", "wooden")),
    (
        "In the long summer of that year the river fell so low that the old stones of the bridge could be seen by all, "
        "and people said",
        "that it would rain soon",
        ("that it would rain soon", "nothing"),
    ),
)
ANSWERS = (
    "42", "The answer is 42.\nSo x 41 it is not.", "paris", "the Lazy dog", "\\boxed{7} or 1,000 x 8", "A) or B",
    "it is Blue", "", "It is blue, often. Really.", "It was 12 then 42 x 42",
)  # fmt: skip
TRAINING = (
    "In a story the capital of France is Paris, and how many are 12 and 30? They are many.",
    "A quick brown fox jumps over the fence.",
    "In the long summer of that year the river fell so low that the old stones of the bridge were there.",
)
HELD_OUT = ("A quick brown fox. It jumps.\n\nIt sleeps.", "Ein zweiter Text über Größe.")


def items() -> list[Item]:
    """Items with all labels: a target, choices, and the tests of a program."""
    found = []
    for number, (question, answer, choices) in enumerate(QUESTIONS):
        more: dict[str, Any] = {"test": "assert True", "entry_point": "print"}
        more |= {"generator": "chain_sum", "entry": {"question": question, "answer": answer, "metadata": {}}}
        found.append(Item(str(number), question, answer, choices, choices.index(answer), room=4, more=more))
    return found


def without(item: Item, labels: Sequence[str]) -> Item:
    """The item with these labels alone."""
    bare = replace(item, more={k: v for k, v in item.more.items() if k in labels})
    if "choices" not in labels:
        bare = replace(bare, choices=(), gold=None)
    return bare if {"target", "choices"} & set(labels) else replace(bare, target=None)


def responses(requests: Sequence[Request], who: str = "") -> list[Response]:
    """Responses that depend on the request and on `who` responds: 0 to 3 nats per byte, forms of the correct answer."""
    found = []
    for request in requests:
        digest = hashlib.sha256(f"{who}{request}".encode()).digest()
        if isinstance(request, Likelihood):
            logps = tuple(-3 * byte / 255 for byte in (digest * 8)[: max(1, len(request.continuation.encode()))])
            found.append(Response(logps, digest[0] < 128, len(request.continuation.encode())))
        else:
            first = digest[0] if who else 0
            texts = (_answer(request.prompt, first + sample) for sample in range(request.samples))
            found.append(Response(texts=tuple(texts)))
    return found


def _answer(prompt: str, number: int) -> str:
    """One of ANSWERS, or a form of the correct answer if the prompt has a sample question: other questions, others."""
    place = next((i for i, (question, _, _) in enumerate(QUESTIONS) if question in prompt), None)
    if place is None:
        return ANSWERS[number % len(ANSWERS)]
    correct = QUESTIONS[place][1]
    forms = (correct, correct.upper(), f"no x {correct}", f"The {correct}!", f"So it is {correct}", correct[:-1])
    every = (*forms, *ANSWERS)
    return every[(place + number) % len(every)]


def open_run(folder: str) -> Respond:
    """The responses of another run."""
    return functools.partial(responses, who=folder)


def texts(split: str) -> Iterator[str]:
    """Texts of a source."""
    return iter(TRAINING if split == "train" else HELD_OUT)


def metric(entry: PartSpec, knobs: Mapping[str, Any] | None = None, of: Sequence[Item] | None = None) -> Measure:
    """A metric on the sample items; one that compares runs gets one, and one that runs programs a single item."""
    given = dict(knobs or {})
    for name, folder in (("against", "a run"), ("path", "a run")):
        if (knob := entry.knob(name)) and not given.get(name):
            given[name] = folder if knob.length is None else (folder, "another run")
    build = REGISTRIES["metric"].build
    part = built(entry, build, given, texts=texts, open_run=open_run)
    chosen = items() if of is None else of
    return Measure("sample", entry, part, chosen[:1] if entry.facts["runs_code"] else chosen)


def scored(measure: Measure) -> list[Scored]:
    """The values of a measure's items."""
    asked = [list(measure.metric.requests(item)) for item in measure.items]
    return measure.score([responses(requests) for requests in asked])


def evaluation(entry: PartSpec, knobs: Mapping[str, Any] | None = None) -> Any:
    """An evaluation; one that reads a file gets a task file with a few records."""
    given = dict(knobs or {})
    if entry.knob("path") and not given.get("path"):
        given["path"] = str(_task_file())
        given["cluster"] = "label" if given.get("cluster") else ""
    return REGISTRIES["eval"].build(entry.name, given, texts=texts)


@functools.cache
def _task_file() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ablatio-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = [{"question": f"{q} ({i})", "options": c, "label": c.index(a)} for i in range(4) for q, a, c in QUESTIONS]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = [
        "task: sample", "dataset_path: json", "dataset_kwargs: {data_files: {test: test.jsonl}}", "test_split: test",
        "output_type: multiple_choice", "doc_to_text: '{{question}}'", "doc_to_choice: options", "doc_to_target: label",
    ]  # fmt: skip
    (folder / "sample.yaml").write_text("\n".join(settings) + "\n", encoding="utf-8")
    return folder / "sample.yaml"
