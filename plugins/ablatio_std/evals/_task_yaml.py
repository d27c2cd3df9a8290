"""lm-eval's YAML task files: the part of the format that is data, read without running code."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ablatio.data.data_files import shown
from ablatio.data.records import Record, records
from ablatio.errors import UserError
from ablatio.storage.paths import shell_word

OUTPUTS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
CODE = ("class", "custom_dataset", "use_prompt", "unsafe_code", "process_docs", "process_results", "doc_to_image",
        "doc_to_audio")  # fmt: skip
READERS = ("json", "csv", "parquet", "arrow")  # `dataset_path` of local files
DEEPEST = 8  # files that include one another
KEYS = frozenset({
    "task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", "fewshot_config", "doc_to_text", "doc_to_target",
    "doc_to_choice", "output_type", "target_delimiter", "fewshot_delimiter", "description", "num_fewshot",
    "metric_list", "generation_kwargs", "repeats", "filter_list", "metadata", "should_decontaminate",
    "doc_to_decontamination_query", "include",
})  # fmt: skip


class TaskYaml:
    """A task file with those that it includes.

    Raises UserError for code, for keys that are not supported, and for data that is not in local files.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.settings = path, _read(path, 0)
        if named := [key for key in CODE if key in self.settings]:
            raise self.refused(f"`{named[0]}` names code, which is not run")
        if unknown := sorted(set(self.settings) - KEYS):
            raise self.refused(f"`{unknown[0]}` is not supported; known: {', '.join(sorted(KEYS))}")
        self.output = str(self.settings.get("output_type", "generate_until"))
        if self.output not in OUTPUTS:
            raise self.refused(f"output_type={self.output}; expected one of {', '.join(OUTPUTS)}")
        if not isinstance(self.settings.get("task"), str | None):
            raise self.refused("`task` is a list: a group of tasks; evaluate its tasks one by one")
        self.delimiter = str(self.settings.get("target_delimiter", " "))
        self.templates = _Templates()

    def refused(self, why: str) -> UserError:
        """The error for something in the file that cannot be used."""
        return UserError(
            f"{self.path}: {why}\n    try: a file with templates alone, or lm-eval itself: "
            f"ablatio evaluate RUN lm_eval=TASK --include {shell_word(self.path.parent)}"
        )

    def docs(self, split: str) -> list[Record]:
        """Return the records of a split."""
        found = [r for file in self._files(split) for r in records(file)]
        if not found:
            raise UserError(f"{self.path}: the split `{split}` has no records\n    try: another data file")
        return found

    @property
    def evaluated(self) -> str:
        """Name of the split whose records are the items: that of `test_split`, else of `validation_split`."""
        for key in ("test_split", "validation_split", "training_split"):
            if name := self.settings.get(key):
                return str(name)
        raise self.refused("it names no test_split and no validation_split")

    @property
    def shown(self) -> str:
        """Name of the split from which examples are drawn."""
        given = (self.settings.get("fewshot_config") or {}).get("split") or self.settings.get("fewshot_split")
        return str(
            given or self.settings.get("training_split") or self.settings.get("validation_split") or self.evaluated
        )

    def _files(self, split: str) -> list[Path]:
        reader = str(self.settings.get("dataset_path", ""))
        given = (self.settings.get("dataset_kwargs") or {}).get("data_files")
        if given is None and (folder := self._place(reader)).exists() and reader:
            return [folder] if folder.is_file() else self._of_folder(folder, split)
        if given is None or reader not in READERS:
            raise self.refused(
                f"dataset_path={reader!r} is no local file, and nothing is downloaded; expected one of "
                f"{', '.join(READERS)} with `dataset_kwargs: {{data_files: {{{split}: FILE}}}}`, or a folder with "
                f"{split}.jsonl"
            )
        files = given.get(split) if isinstance(given, Mapping) else given
        if files is None:
            raise self.refused(f"data_files has no file for the split `{split}`; it has {', '.join(given)}")
        places = [self._place(str(f)) for f in (files if isinstance(files, list) else [files])]
        if missing := [p for p in places if not p.is_file()]:
            raise UserError(f"{self.path}: there is no file {missing[0]}\n    try: ls {shell_word(missing[0].parent)}")
        return places

    def _place(self, name: str) -> Path:
        """A path of the file: beside it, or else relative to the working directory."""
        beside = self.path.parent / name
        return beside if beside.exists() else Path(name).expanduser()

    def _of_folder(self, folder: Path, split: str) -> list[Path]:
        # `test.jsonl` and the shards `test-00000-of-00002.parquet`.
        found = sorted(f for f in folder.iterdir() if f.is_file() and f.name.split(".")[0].split("-")[0] == split)
        if not found:
            raise UserError(
                f"{self.path}: {folder} has no file of the split `{split}`\n    try: ls {shell_word(folder)}"
            )
        return found

    def field(self, key: str, doc: Record, default: Any = "") -> Any:
        """Value of `doc_to_text` and the like for a record: a field of it, or a template filled with its fields."""
        given = self.settings.get(key, default)
        if not isinstance(given, str):
            return list(given.values()) if isinstance(given, Mapping) else given
        if given in doc.fields:
            return doc.fields[given]
        try:
            text = self.templates.filled(given, doc.fields)
        except UserError as error:
            fields = ", ".join(doc.fields)
            raise UserError(
                f"{self.path}: {key} cannot be filled for {doc.place}: {error}; its fields are {fields}\n"
                f"    try: a template with these fields, or data that has the missing one"
            ) from None
        return text


class _Templates:
    """Jinja templates in a sandbox: no access to attributes with underscores, no changes of objects."""

    def __init__(self) -> None:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # StrictUndefined: a misspelled field is an error, where Jinja would write nothing.
        self.environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self.environment.filters["regex_replace"] = _regex_replace
        self.compiled: dict[str, Any] = {}

    def filled(self, template: str, fields: Mapping[str, Any]) -> str:
        from jinja2 import TemplateError

        try:
            if template not in self.compiled:
                self.compiled[template] = self.environment.from_string(template)
            return str(self.compiled[template].render(**fields))
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise UserError(str(error)) from None


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def literal(text: Any, where: str) -> Any:
    """The list or number that a template wrote as text; other values as they are."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(
            f"{where} gives {shown(text)}; expected a list\n    try: a template as {{{{[a, b]}}}}"
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML without objects; `!function` is refused with a reason."""


def _refuse_function(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise UserError(
        f"{node.start_mark.name}, line {node.start_mark.line + 1}: `!function` names code, which is not run\n"
        "    try: a template in its place, or lm-eval itself: ablatio evaluate RUN lm_eval=TASK"
    )


_Loader.add_constructor("!function", _refuse_function)


def _read(path: Path, depth: int) -> dict[str, Any]:
    """Settings of a file; those that it includes come first and are replaced by its own."""
    if depth > DEEPEST:
        raise UserError(
            f"{path}: files include one another more than {DEEPEST} deep\n    try: one file without `include`"
        )
    try:
        with path.open(encoding="utf-8") as file:
            data = _Loader(file).get_single_data()  # a SafeLoader
    except OSError as error:
        raise UserError(
            f"eval.task_file.path: {path}: {error.strerror}\n    try: ls {shell_word(path.parent)}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no YAML: {said}\n    try: a task file of lm-eval") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f'{path}: expected a task file with settings by name, as `doc_to_text: "{{{{question}}}}"`\n'
                        "    try: a task file of lm-eval")  # fmt: skip
    included = data.get("include")
    base: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included] if included else []:
        base |= _read(path.parent / str(name), depth + 1)
    return base | {key: value for key, value in data.items() if key != "include"}


def answers(targets: Any, choices: Sequence[str]) -> Iterator[str]:
    """Texts of the correct answers: a text, an index of the choices, or a list of them."""
    for target in targets if isinstance(targets, list) else [targets]:
        whole = isinstance(target, int) and not isinstance(target, bool)
        # A bool is an int in Python, and `true` in YAML is a text here.
        yield choices[target] if whole and choices and 0 <= target < len(choices) else str(target)
