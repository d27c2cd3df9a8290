"""Files of runs and studies with anything in them: each reader answers with one line, never with a traceback."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
from helpers.studies import Fake, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio import tokenizers
from ablatio.config import from_transformers
from ablatio.config.compose import compose_run
from ablatio.errors import AblatioError, DamagedFile
from ablatio.model.peft.adapter_files import read_adapter
from ablatio.report.analysis.findings import find
from ablatio.report.read.table import read_table
from ablatio.storage.json_files import parse_object, read_object
from ablatio.sweep.recipes.run import read as recipe
from ablatio.sweep.study import Study, read_job
from ablatio.training.metrics_csv import MetricsFile
from ablatio.training.run_folder import read_run
from ablatio.training.samples_file import SamplesFile

EDITS, ALL = 60, 300  # of each file in the usual selection, and with `--select all`
ODD: list[Any] = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "\ud800", "x" * 1000, [], {}, [[]], {"a": 1}]


def edited(text: bytes, rng: random.Random) -> bytes:
    """The file cut, with other bytes, with another leaf, or something else altogether."""
    kind = rng.randrange(5)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        place = rng.randrange(len(text))
        return text[:place] + rng.randbytes(rng.randrange(1, 9)) + text[place + rng.randrange(9) :]
    if kind == 2:
        return rng.choice([b"", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000])
    try:
        data = json.loads(text)
    except ValueError:  # rows of a table or of samples
        lines = text.split(b"\n")
        lines[rng.randrange(len(lines))] = json.dumps(rng.choice(ODD)).encode()
        return b"\n".join(lines)
    _change(data, rng)
    return json.dumps(data).encode()


def _change(data: Any, rng: random.Random) -> None:
    """Replace, remove or add one value somewhere in nested data."""
    node = data
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice(ODD)
        return


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs whose configs are whole."""
    folder = write_study(tmp_path_factory.mktemp("s") / "s", Fake(axes={"norm": ["rmsnorm"]}, seeds=(1, 2), steps=40))
    config = compose_run(["train.steps=40"]).config
    for run in sorted((folder / "runs").iterdir()):
        (run / "config.json").write_text(json.dumps(config))
        rows = [{"step": step, "prompt": "a", "answer": f"{step}"} for step in (0, 20, 40)]
        (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _first(folder: Path) -> Path:
    return min((folder / "runs").iterdir())


def _beside(name: str, data: Any) -> Callable[[Path], Path]:
    """A file in a folder of its own beside the runs."""

    def place(folder: Path) -> Path:
        path = folder.parent / "beside" / name.replace("/", "-") / name.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(data))
        return path

    return place


def _tokenizer(folder: Path, path: Path) -> object:
    return tokenizers.build("pretrained", {"path": str(path.parent)})


def _with_tokenizer(name: str, data: Any) -> Callable[[Path], Path]:
    """A file beside the tokenizer.json of the library tokenizers."""

    def place(folder: Path) -> Path:
        path = _beside(name, data)(folder)
        vocab = {"a": 0, "</s>": 1}
        made = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="a"))
        made.add_special_tokens(["</s>"])
        if name != "tokenizer.json":
            made.save(str(path.parent / "tokenizer.json"))
        elif data is None:
            made.save(str(path))
        return path

    return place


ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_parameters": ROPE,
}  # fmt: skip
BYTES = {"name": "bytes", "knobs": {}, "state": '{"tokenizer": "bytes"}'}
STAGE = {"stage": "sft", "folder": "01-sft", "takes": [], "run": "abc"}
TENSORS = {"sha256": "a", "bytes": 3, "names": []}
ADAPTER = {"format": 1, "peft": {"name": "lora"}, "base": "a", "of": "", "tensors": TENSORS}
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path], object]]] = {
    "config.json": (lambda f: _first(f) / "config.json", lambda f, path: read_run(path.parent)),
    "manifest.json": (lambda f: _first(f) / "manifest.json", lambda f, path: read_object(path)),
    "metrics.csv": (lambda f: _first(f) / "metrics.csv", lambda f, path: MetricsFile(path).start(20)),
    "samples.jsonl": (lambda f: _first(f) / "samples.jsonl", lambda f, path: SamplesFile(path).compared()),
    "job": (lambda f: min((f / "jobs").iterdir()), lambda f, path: read_job(f, path.stem)),
    "study.json": (lambda f: f / "study.json", lambda f, path: Study.read(f)),
    "metrics as a frame": (lambda f: _first(f) / "metrics.csv", lambda f, path: _frame(path)),
    "run.tokenizer": (_beside("tokenizer.json", BYTES), _tokenizer),
    "transformers tokenizer": (_with_tokenizer("own/tokenizer.json", None), _tokenizer),
    "tokenizer_config.json": (_with_tokenizer("tokenizer_config.json", {"eos_token": "</s>"}), _tokenizer),
    "transformers config": (_beside("config.json", LLAMA), lambda f, path: from_transformers.read(path.parent)),
    "recipe.json": (_beside("recipe.json", {"overrides": ["a=1"], "stages": [STAGE]}), lambda f, p: recipe(p.parent)),
    "adapter.json": (_beside("adapter.json", ADAPTER), lambda f, path: read_adapter(path.parent)),
}


def _frame(path: Path) -> object:
    from ablatio.api.run_folder import RunFolder

    run = RunFolder.__new__(RunFolder)
    run.folder = path.parent
    return run.metrics


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("edits", [EDITS, pytest.param(ALL, marks=pytest.mark.long)])
def test_a_reader_says_in_one_line_what_it_expected(study: Path, name: str, edits: int) -> None:
    where, read = READERS[name]
    path = where(study)
    good, rng, refused = path.read_bytes(), random.Random(name), 0
    try:
        for _ in range(edits):
            path.write_bytes(edited(good, rng))
            try:
                read(study, path)
            except AblatioError as error:
                refused += 1
                assert str(path.parent) in str(error) or name == "config.json", error
    finally:
        path.write_bytes(good)
    assert refused > 5, "edits that a reader cannot use are refused, not taken"
    if name != "adapter.json":  # which has no tensors here
        read(study, path)


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "config.json", "metrics.csv", "study.json", "job"])
def test_a_report_is_written_whatever_one_file_holds(study: Path, name: str) -> None:
    path = READERS[name][0](study) if name in READERS else _first(study) / name
    good, rng = path.read_bytes(), random.Random(name)
    try:
        for _ in range(EDITS // 2):
            path.write_bytes(edited(good, rng))
            assert find(read_table([study])).metric == "val/loss"
    finally:
        path.write_bytes(good)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_an_object_or_damaged(text: str) -> None:
    try:
        assert isinstance(parse_object(text, "a file"), dict)
    except DamagedFile as error:
        assert str(error).startswith("a file") and "\n" not in str(error)


VALUES = ["[]", "null", "3", "[1]", "{}", "{a:1}", "[[]]", "-1", "1e400", "true", "''", "9" * 60, "99999999999999"]
KEYS = ["norm", "norm.name", "norm.eps", "logger.csv", "stabilizer.clip", "seeds", "seeds.init", "train", "train.steps",
        "train.accumulate", "train.batch_size", "trainer.threads", "trainer.workers", "data.length", "peft", "model",
        "model.n_layers", "seed", "reward", "task"]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("key", KEYS)
def test_any_value_of_a_setting_is_taken_or_refused_with_its_problems(key: str) -> None:
    for value in VALUES:
        _compose(f"{key}={value}")


@pytest.mark.parametrize(
    "override",
    ["norm=[]", "norm.name=[1]", "logger.csv=3", "seeds=null", "stabilizer.clip=3", "peft=[]", f"seed={'9' * 400}",
     "seeds.init=99999999999999999999999", "train.steps=1000000000000", "train.accumulate=1000000000000",
     "trainer.threads=10000000", "data.length=1000000000000", "trainer.workers=100000", "model.n_layers=100000000",
     "train.batch_size=10000000000000"],
)  # fmt: skip
def test_a_value_that_no_machine_can_use_is_refused(override: str) -> None:
    error = _compose(override)
    assert error and len(error) < 1500, override


def _compose(override: str) -> str:
    try:
        compose_run([override])
    except AblatioError as error:
        return str(error)
    return ""
