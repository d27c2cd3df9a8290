"""Evaluations written as lm-eval's YAML task files, with data in local files."""

import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from ablatio import NonNegative, Positive, evals
from ablatio.data.data_files import log_once
from ablatio.data.items import Item
from ablatio.data.records import Record
from ablatio.errors import UserError

from ._task_answers import TaskAnswers
from ._task_yaml import TaskYaml, answers, literal

MEASURES = {
    "multiple_choice": ("likelihood_choice",), "loglikelihood": ("accuracy",), "loglikelihood_rolling": ("perplexity",),
    "generate_until": ("answer_parse",),
}  # fmt: skip
SAME = {"exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf", "rouge": "rouge", "f1": "f1",
        "perplexity": "perplexity", "bits_per_byte": "perplexity", "byte_perplexity": "perplexity",  # 2^bits_per_byte
        "acc": "accuracy"}  # fmt: skip
OF_CHOICE = ("acc", "acc_norm", "acc_bytes", "acc_norm_bytes")  # what likelihood_choice has, whatever the file names
IN_FILE = ("split", "sampler")  # keys of fewshot_config that are read
ROOM, STOP = 256, ("\n\n",)
NAME = re.compile(r"[^\w.-]+")
EXAMPLES_SEED = 1234  # of lm-eval's choice of examples


@evals.register("task_file", paper="arXiv:2405.14782")
class TaskFile:
    """Items of a task file in lm-eval's YAML format, from data in local files.

    Supported is what is data: `doc_to_text`, `doc_to_target`, `doc_to_choice` as Jinja templates (in a sandbox) or
    names of fields, `output_type` multiple_choice, loglikelihood, loglikelihood_rolling and generate_until,
    `description`, `num_fewshot` with lm-eval's random or first examples, `generation_kwargs.until`, `include`, and for
    generated answers `filter_list` (regex, map, take_first and the like) and the options of exact_match.
    `dataset_path` is json, csv, parquet or arrow with `dataset_kwargs: {data_files: {test: FILE}}`, or a folder with a
    file for each split.  Whatever names code, such as `!function`, is refused.
    """

    labels = ()
    reads_tasks = True

    def __init__(
        self,
        *,
        path: Annotated[str, "the YAML file"] = "",
        items: Annotated[int | None, Positive, "largest number of items; null: all"] = None,
        shots: Annotated[int | None, NonNegative, "examples in the prompt; null: those of the file"] = None,
        rationale: Annotated[str, "field with the steps to the answer, which a prompt program may show"] = "",
        filter: Annotated[str, "entry of filter_list that reads generated answers; empty: the first one"] = "",
        cluster: Annotated[str, "field with equal values for items that belong together, as of one passage"] = "",
    ) -> None:
        if not path:
            raise UserError(
                "eval=task_file needs a file in lm-eval's YAML format\n    try: eval.task_file.path=my_task.yaml"
            )
        self.cluster, self.rationale = cluster, rationale
        self.task, self.count = TaskYaml(Path(path).expanduser()), items
        self.shots = int(self.task.settings.get("num_fewshot") or 0) if shots is None else shots
        self.reading = TaskAnswers(self.task, filter)
        self._refuse_what_would_be_ignored()
        self.measured_by = self._measures()
        self.title = NAME.sub("_", str(self.task.settings.get("task") or Path(path).stem))

    def _measures(self) -> tuple[str, ...]:
        """Metrics for the file's `output_type` and `metric_list`."""
        usual, chooses = MEASURES[self.task.output], self.task.output == "multiple_choice"
        named = [str(m.get("metric")) for m in self.task.settings.get("metric_list") or [] if isinstance(m, dict)]
        if other := [name for name in named if name not in (OF_CHOICE if chooses else SAME)]:
            log_once(f"{self.task.path}: metric_list names {', '.join(other)}, which no metric here has; left out")
        # Without a metric that is known, the usual one of this output type is taken.
        return (() if chooses else tuple(dict.fromkeys(SAME[name] for name in named if name in SAME))) or usual

    def _refuse_what_would_be_ignored(self) -> None:
        """Raise UserError for settings that change the items or the answers, and are not supported."""
        settings = self.task.settings
        if int(settings.get("repeats") or 1) != 1:
            raise self.task.refused(f"repeats={settings['repeats']}: one answer is drawn; expected repeats=1")
        if unknown := sorted(set(settings.get("fewshot_config") or {}) - set(IN_FILE)):
            raise self.task.refused(f"fewshot_config.{unknown[0]} is not supported; known: {', '.join(IN_FILE)}")
        generation = settings.get("generation_kwargs") or {}
        sampled = [k for k in ("do_sample", "temperature") if float(generation.get(k) or 0)]
        if unknown := sorted(set(generation) - {"until", "max_gen_toks", "do_sample", "temperature"}) or sampled:
            # Decoding is an axis of a run: `decode=` says it for all items, whatever file they come from.
            log_once(f"{self.task.path}: generation_kwargs.{unknown[0]} is not read; decode=NAME chooses the decoding")

    def read(self, text: str) -> str:
        """Return the answer in a generated text, extracted by the file's filter_list and options of exact_match."""
        return self.reading.read(text)

    def items(self) -> Iterator[Item]:
        task = self.task
        docs = task.docs(task.evaluated)
        pool = docs if task.shown == task.evaluated else task.docs(task.shown) if self.shots else []
        # One generator for all items, as lm-eval draws: the examples of an item depend on the items before it.
        draws, first = random.Random(EXAMPLES_SEED), self._takes_first()
        for doc in islice(docs, self.count):
            shown = self._examples(doc, pool, draws, first) if self.shots else []
            yield self._item(doc, shown)

    def examples(self) -> Iterator[Item]:
        """Items of the split from which examples are drawn, if it is not the one that is evaluated."""
        if self.task.shown != self.task.evaluated:
            yield from (self._item(doc, []) for doc in self.task.docs(self.task.shown))

    def _takes_first(self) -> bool:
        sampler = str((self.task.settings.get("fewshot_config") or {}).get("sampler", "default"))
        if sampler not in ("default", "first_n"):
            raise self.task.refused(f"fewshot_config.sampler={sampler}; expected default or first_n")
        return sampler == "first_n"

    def _examples(self, doc: Record, pool: list[Record], draws: random.Random, first: bool) -> list[Record]:
        """Examples for the prompt, without the item itself."""
        own = self.task.shown == self.task.evaluated
        # One more than asked for, if the item itself may be among them: it is taken out below, as lm-eval does.
        need = self.shots + own
        if len(pool) < need:
            raise UserError(
                f"{self.task.path}: {self.shots} examples need {need} records, and the split `{self.task.shown}` has "
                f"{len(pool)}\n    try: eval.task_file.shots={max(0, len(pool) - own)}"
            )
        drawn = pool if first else draws.sample(pool, need)
        return [d for d in drawn if d.fields != doc.fields][: self.shots]

    def _item(self, doc: Record, shown: list[Record]) -> Item:
        task = self.task
        before = [str(task.field("description", doc))]
        separator = str(task.settings.get("fewshot_delimiter", "\n\n"))
        before += [self._question(d) + task.delimiter + next(answers(*self._target(d))) + separator for d in shown]
        target, choices = self._target(doc)
        question, settings = self._question(doc), task.settings.get("generation_kwargs") or {}
        until = settings.get("until", STOP)
        common: dict[str, Any] = {
            "id": doc.id, "prompt": "".join(before) + question, "question": question, "more": dict(doc.fields),
            "cluster": self._field("cluster", self.cluster, doc),
            "rationale": self._field("rationale", self.rationale, doc),
            "stop": (until,) if isinstance(until, str) else tuple(map(str, until)),
            "room": int(settings.get("max_gen_toks", ROOM)),
        }  # fmt: skip
        if task.output == "multiple_choice":
            return Item(**common, choices=choices, gold=self._gold(doc, target, choices), delimiter=task.delimiter)
        texts = list(answers(target, choices))
        if task.output.startswith("loglikelihood"):
            # A rolling likelihood is of a whole text from its beginning: there is no prompt.
            prompt = "" if task.output == "loglikelihood_rolling" else common["prompt"]
            return Item(**common | {"prompt": prompt}, target=texts[0], delimiter="")
        texts = [self.reading.clean(text).strip() for text in texts]
        return Item(**common, target=texts[0], references=tuple(texts[1:]))

    def _field(self, knob: str, name: str, doc: Record) -> str:
        """The field of a record that a knob names, as text; empty if it names none."""
        if name and name not in doc.fields:
            raise UserError(
                f"eval.task_file.{knob}={name}: {doc.place} has no such field; its fields are "
                f"{', '.join(doc.fields)}\n    try: eval.task_file.{knob}={next(iter(doc.fields))}"
            )
        return str(doc.fields[name]) if name else ""

    def _question(self, doc: Record) -> str:
        found = self.task.field("doc_to_text", doc)
        if isinstance(found, int) and self.task.output == "multiple_choice":
            raise self.task.refused(f"doc_to_text gives the number {found}: several contexts with one end, which are "
                                    "not supported")  # fmt: skip
        return str(found)

    def _target(self, doc: Record) -> tuple[Any, tuple[str, ...]]:
        """`doc_to_target` and `doc_to_choice` of a record."""
        given = self.task.field("doc_to_choice", doc, None)
        found = literal(given, f"{self.task.path}: doc_to_choice") if given is not None else ()
        choices = tuple(map(str, found))
        target = self.task.field("doc_to_target", doc)
        # A template writes text: "1" is an index and "[...]" a list.
        if isinstance(target, str) and ((target.isdigit() and choices) or (target[:1] == "[" and target[-1:] == "]")):
            target = literal(target, f"{self.task.path}: doc_to_target")
        return target, choices

    def _gold(self, doc: Record, target: Any, choices: tuple[str, ...]) -> int:
        if isinstance(target, str) and target in choices:
            return choices.index(target)
        if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices):
            return target
        raise UserError(
            f"{self.task.path}: doc_to_target gives {target!r:.40} for {doc.place}; expected an index from 0 to "
            f'{len(choices) - 1} or one of {list(choices)!r:.80}\n    try: doc_to_target: "{{{{label}}}}"'
        )
