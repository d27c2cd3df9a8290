"""Start from an existing model: `model=run model.path=RUN` or `model=hf model.path=DIR`; otherwise from its init.

An existing model brings its parts and sizes, as a preset does; overrides on the command line take precedence, so a
part can be replaced.  Weights are loaded where names and shapes still match (ablatio.training.initial_weights).  A
study or an experiment may name the model in its file (`model: {start: hf, path: smollm2}`); its other settings take
precedence over the model's, too.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ablatio.config import from_transformers, yaml_files
from ablatio.config import schema as run_config
from ablatio.config.extend import extended, settings_of
from ablatio.config.kind_lists import model_keys
from ablatio.config.words import override_text
from ablatio.errors import UserError
from ablatio.registry.parts_file import recorded_in, refuse_another
from ablatio.registry.per_layer import AT, LAYERS
from ablatio.registry.registry import REGISTRIES, ContractError, PartSpec
from ablatio.registry.value_schedules import ended
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word

ORIGINS = ("scratch", "run", "hf")
FILES = ("experiment", yaml_files.SWEEP)  # groups of files that may name the model to start from
Coming = Mapping[str, Mapping[str, Any]]


def inherited(overrides: Sequence[str], coming: Coming = MappingProxyType({})) -> list[str]:
    """The overrides, preceded by those that the model's origin implies; unchanged if there is no origin.

    coming: configs of planned runs, by their folders
    """
    if folder := extended(overrides):
        return [*settings_of(folder, overrides), *overrides]
    said = [f"model.start={o.removeprefix('model=')}" if o.startswith("model=") else o for o in overrides]
    given = in_files(said) | {key: value for key, _, value in (o.partition("=") for o in said)}
    start, path = given.get("model.start", "scratch"), given.get("model.path", "").strip("\"'")
    if start not in ("run", "hf"):
        return said
    if not path or path == "null":
        folder = "RUN" if start == "run" else "DIR"
        raise UserError(f"model={start} needs a folder\n    try: ablatio train model={start} model.path={folder}")
    if start == "run" and path in coming:
        settings = _shaping(coming[path]) | _tokenizer(Path(path))
    else:
        settings = _settings(start, folder_of(path, _making(path, said)))
    return [*_overrides(settings, given), *said]


def in_files(overrides: Sequence[str]) -> dict[str, str]:
    """Settings of the study or experiment on a command line: {task: sft, model.start: hf, model.path: DIR, ...}."""
    found: dict[str, str] = {}
    for text in overrides:
        group, _, name = text.lstrip("+").partition("=")
        if group in FILES and (file := yaml_files.options_of(group).get(name)):
            found |= _settings_in(file.path, file.path.stat().st_mtime_ns)
    return found


@functools.cache
def _settings_in(path: Path, changed: int) -> Mapping[str, str]:
    """Choices and settings of a YAML file; `changed` is its modification time, part of the cache key."""
    found: dict[str, str] = {}
    for key, value in yaml_files.read_yaml(path).items():
        if key == "defaults":
            choices = [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
            found |= {_group(k): str(option) for item in choices for k, option in item.items()}
        elif isinstance(value, Mapping) and key != yaml_files.SWEEP:
            found |= {f"{key}.{knob}": str(setting) for knob, setting in value.items()}
    return found


def _group(key: str) -> str:
    """`override /task` -> task."""
    return key.removeprefix("override").strip().lstrip("/")


def _making(path: str, overrides: Sequence[str]) -> str:
    """Command that creates a folder, as given in the head comment of a study (`ablatio train ... name=base`), or ""."""
    named = [text.lstrip("+").partition("=") for text in overrides]
    files = [yaml_files.options_of(group).get(name) for group, _, name in named if group in FILES]
    lines = [line.strip() for file in files if file for line in file.doc.splitlines()]
    own = f"name={Path(path).name}"
    return next((line for line in lines if line.startswith("ablatio ") and own in line.split()), "")


def folder_of(path: str, making: str = "") -> Path:
    """The folder at `path`, or that of a model downloaded by `ablatio fetch`.

    making: the command that creates the folder, for the error
    """
    from ablatio.storage.pretrained import MODELS, place_of, verified

    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path not in MODELS:
        raise UserError(
            f"model.path: there is no folder {folder}\n    try: {making or f'ls {shell_word(folder.parent)}'}"
        )
    if not verified(place_of(path)):
        raise UserError(f"{path} is not on this machine yet\n    try: ablatio fetch {path}")
    return place_of(path)


def _settings(start: str, folder: Path) -> dict[str, Any]:
    """Parts, sizes and tokenizer of the model in `folder`, in the form of a config."""
    found = _of_run(folder) if start == "run" else from_transformers.read(folder)
    return found | _tokenizer(folder)


def _tokenizer(folder: Path) -> dict[str, Any]:
    return {"tokenizer": {"name": folder_tokenizer().name, "path": str(folder)}}


def folder_tokenizer() -> PartSpec:
    """The first tokenizer that can read the folder of a run or model (fact `reads_folder`)."""
    found = [entry for entry in REGISTRIES["tokenizer"] if entry.facts["reads_folder"]]
    if not found:
        raise UserError("no installed tokenizer can read a model folder\n    try: ablatio list tokenizer")
    return found[0]


def _of_run(folder: Path) -> dict[str, Any]:
    from ablatio.registry.discovery import refuse_objects

    path = folder / "config.json"
    try:
        config = read_object(path, {"model": dict})
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a run folder: no config.json\n    try: ls {shell_word(folder.parent)}"
        ) from None
    try:
        refuse_objects(config, str(path))
    except ContractError as error:
        raise UserError(f"{error}\n    try: ablatio runs {shell_word(folder.parent)}, for another run") from None
    if "model" not in config:
        raise UserError(f"{path} is no config of a run: it has no `model`\n    try: ls {shell_word(folder.parent)}")
    refuse_another(recorded_in(folder / "manifest.json"), folder)
    found = _shaping(config)
    tuned = (config.get("peft") or {}).get("name", REGISTRIES["peft"].default) != REGISTRIES["peft"].default
    if tuned and found["model"].get("distinct_layers") is not None:
        found["model"]["distinct_layers"] = None  # merged adapters give each layer weights of its own
    return found


def _shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that determines its model, at the end of its training."""
    model = {k: v for k, v in config["model"].items() if k not in ("start", "path")}
    found = {key: config[key] for key in model_keys() if key in config}
    train = config.get("train", {})
    rows = [train.get("batch_size"), train.get("accumulate"), config.get("data", {}).get("length") or model["max_len"]]
    steps, known = int(train.get("steps") or 1), all(isinstance(number, int) for number in rows)
    # Where rows change, their number is not known here: then a schedule over tokens counts as run to its end.
    whole = {path for path, knob in run_config.settings_of(config).items() if knob.type == "int"}
    tokens = math.prod(rows) * (steps - 1) if known else math.inf
    return dict(ended(found | {"model": model}, steps, tokens, whole))


def _overrides(settings: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[str]:
    """Settings as overrides, without those already given; a newly chosen option keeps its own knobs."""
    for key, value in _without_replaced_layers(settings, given).items():
        if not isinstance(value, Mapping):
            if key not in given:
                yield f"{key}={override_text(value)}"
            continue
        if key in given:
            continue
        if "name" in value:
            yield f"{key}={value['name']}"
        for knob, setting in value.items():
            if knob != "name" and f"{key}.{knob}" not in given:
                yield f"{key}.{knob}={override_text(setting)}"


def _without_replaced_layers(settings: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Settings without the options per layer of kinds for which another option is given, as for a preset."""

    def kept(node: Mapping[str, Any]) -> dict[str, Any]:
        own = {kind: (settings.get(kind) or {}).get("name") for kind in node}
        return {kind: value for kind, value in node.items() if given.get(kind, own[kind]) == own[kind]}

    layers = settings.get(LAYERS)
    if not layers:
        return dict(settings)
    lists = kept({kind: value for kind, value in layers.items() if kind != AT})
    return {**settings, LAYERS: lists | ({AT: single} if (single := kept(layers.get(AT) or {})) else {})}
