"""Extracts the answer from a generated text, as lm-eval's YAML task files say: filter_list, options of exact_match."""

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from ablatio.errors import UserError, did_you_mean

from ._task_yaml import TaskYaml

Step = Callable[[str], str]
OPTIONS = ("ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore")
OTHERS = ("metric", "aggregation", "higher_is_better")  # settings of a metric that do not change it here


class TaskAnswers:
    """Reads generated answers as the file says: the steps of one entry of `filter_list`, then exact_match's options.

    chosen  name of the entry; empty: the first one

    Raises UserError for an entry that is not there, for steps that are not supported, and for unknown options.
    """

    def __init__(self, task: TaskYaml, chosen: str = "") -> None:
        self.task = task
        entries = task.settings.get("filter_list") or []
        names = [str(entry.get("name")) for entry in entries]
        if chosen and chosen not in names:
            raise UserError(
                f"eval.task_file.filter={chosen}: {task.path} has no such filter{did_you_mean(chosen, names)}; it has "
                f"{', '.join(names) or 'none'}\n    try: leave out eval.task_file.filter"
            )
        at = names.index(chosen) if chosen else 0
        self.steps = [self._step(dict(step)) for step in (entries[at].get("filter") or [] if entries else [])]
        self.cleaning = self._cleaning()

    def read(self, text: str) -> str:
        """Return the answer in a generated text."""
        for step in self.steps:
            text = step(text)
        return self.clean(text)

    def clean(self, text: str) -> str:
        """Return an answer without what exact_match ignores; correct answers are cleaned in the same way."""
        for step in self.cleaning:
            text = step(text)
        return text

    def _step(self, settings: dict[str, Any]) -> Step:
        name = str(settings.pop("function", None))
        if name not in STEPS:
            raise self.task.refused(f"filter_list has the step `{name}`; supported are {', '.join(STEPS)}")
        make, known = STEPS[name]
        if unknown := sorted(set(settings) - set(known)):
            raise self.task.refused(f"the step `{name}` of filter_list has the setting `{unknown[0]}`, not supported")
        try:
            return make(settings)
        except (re.error, TypeError, ValueError) as error:
            raise self.task.refused(f"the step `{name}` of filter_list: {error}") from None

    def _cleaning(self) -> list[Step]:
        """The options of exact_match, in lm-eval's order."""
        asked = [m for m in self.task.settings.get("metric_list") or [] if isinstance(m, Mapping)]
        given = {k: v for m in asked for k, v in m.items() if k not in OTHERS}
        if not given:
            return []
        if len(asked) > 1 or asked[0].get("metric") != "exact_match" or set(given) - set(OPTIONS):
            known = f"expected {', '.join(OPTIONS)} of exact_match alone"
            raise self.task.refused(f"metric_list has the option `{next(iter(given))}`; {known}")
        try:
            patterns = [re.compile(str(pattern)) for pattern in given.get("regexes_to_ignore") or ()]
        except re.error as error:
            raise self.task.refused(f"regexes_to_ignore: {error}") from None
        found: list[Step] = [lambda text, p=pattern: p.sub("", text) for pattern in patterns]  # type: ignore[misc]
        found += [str.lower] if given.get("ignore_case") else []
        found += [_without(string.punctuation)] if given.get("ignore_punctuation") else []
        return found + ([_without(string.digits)] if given.get("ignore_numbers") else [])


def _without(characters: str) -> Step:
    table = str.maketrans("", "", characters)
    return lambda text: text.translate(table)


def _regex(settings: Mapping[str, Any]) -> Step:
    r"""The match number `group_select` of a pattern, its first group that is not empty; else `fallback`."""
    pattern = re.compile(str(settings.get("regex_pattern", r"#### (\-?[0-9\.\,]+)")))
    select, fallback = int(settings.get("group_select", 0)), str(settings.get("fallback", "[invalid]"))

    def step(text: str) -> str:
        matches = pattern.findall(text)
        if not -len(matches) <= select < len(matches):
            return fallback
        groups = matches[select] if isinstance(matches[select], tuple) else (matches[select],)
        return next((group.strip() for group in groups if group), fallback if len(groups) > 1 else "")

    return step


def _mapped(settings: Mapping[str, Any]) -> Step:
    mapping = {str(k): str(v) for k, v in dict(settings.get("mapping_dict") or {}).items()}
    other = str(settings.get("default_value") or "")
    return lambda text: mapping.get(text, other)


def _simple(step: Step) -> Callable[[Mapping[str, Any]], Step]:
    return lambda settings: step


STEPS: dict[str, tuple[Callable[[Mapping[str, Any]], Step], tuple[str, ...]]] = {
    "regex": (_regex, ("regex_pattern", "group_select", "fallback")),
    "map": (_mapped, ("mapping_dict", "default_value")),
    "lowercase": (_simple(str.lower), ()),
    "uppercase": (_simple(str.upper), ()),
    # As lm-eval: one space that begins the answer.
    "remove_whitespace": (_simple(lambda text: text.removeprefix(" ")), ()),
    "take_first": (_simple(lambda text: text), ()),  # one answer is drawn
}
