"""lm-eval's task files: items as lm-eval makes them, and what is refused with its reason."""

import json
from pathlib import Path

import pytest

from ablatio import evals, metrics
from ablatio.data.data_files import log_once
from ablatio.data.items import Item
from ablatio.errors import UserError

ROWS = [
    {"question": "Is it blue?", "options": ["yes", "no"], "label": 0, "passage": "p0"},
    {"question": "Is it red?", "options": ["yes", "no"], "label": 1, "passage": "p0"},
    {"question": "Is it wide?", "options": ["yes", "no", "perhaps"], "label": 2, "passage": "p1"},
]
CHOICE = """
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: data/test.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: options
doc_to_target: label
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "data" / "test.jsonl").write_text(lines)
    return tmp_path


def items(folder: Path, text: str, **knobs) -> list[Item]:
    (folder / "task.yaml").write_text(text)
    return list(evals.build("task_file", {"path": str(folder / "task.yaml"), **knobs}, texts=None).items())


def test_multiple_choice_with_templates_and_fields(folder: Path) -> None:
    found = items(folder, CHOICE)
    assert [(i.prompt, i.choices, i.gold, i.delimiter) for i in found] == [
        ("Q: Is it blue?\nA:", ("yes", "no"), 0, " "), ("Q: Is it red?\nA:", ("yes", "no"), 1, " "),
        ("Q: Is it wide?\nA:", ("yes", "no", "perhaps"), 2, " "),
    ]  # fmt: skip
    assert len(items(folder, CHOICE, items=2)) == 2
    assert [i.cluster for i in items(folder, CHOICE, cluster="passage")] == ["p0", "p0", "p1"]
    assert [i.rationale for i in items(folder, CHOICE, rationale="passage")] == ["p0", "p0", "p1"]
    with pytest.raises(UserError, match=r"rationale=steps: .* has no such field; its fields are question, options"):
        items(folder, CHOICE, rationale="steps")
    with pytest.raises(UserError, match=r"cluster=author: .* has no such field; its fields are question, options"):
        items(folder, CHOICE, cluster="author")


def test_choices_and_targets_as_templates(folder: Path) -> None:
    text = CHOICE.replace("doc_to_choice: options", "doc_to_choice: \"{{[options[0], 'never']}}\"")
    text = text.replace("doc_to_target: label", 'doc_to_target: "{{options[0]}}"')
    assert [(i.choices, i.gold) for i in items(folder, text)] == [(("yes", "never"), 0)] * 3


def test_examples_come_first_and_never_contain_the_question(folder: Path) -> None:
    text = CHOICE + "num_fewshot: 2\nfewshot_split: test\nfewshot_config: {sampler: first_n}\ndescription: 'Colors. '\n"
    found = items(folder, text)
    assert found[0].prompt == "Colors. Q: Is it red?\nA: no\n\nQ: Is it wide?\nA: perhaps\n\nQ: Is it blue?\nA:"
    assert all(i.prompt.count(i.question) == 1 for i in items(folder, text.replace("first_n", "default")))
    with pytest.raises(UserError, match=r"3 examples need 4 records, and the split `test` has 3"):
        items(folder, text, shots=3)


def test_examples_for_prompt_programs_come_from_the_other_split(folder: Path) -> None:
    (folder / "data" / "train.jsonl").write_text(json.dumps(ROWS[0] | {"question": "Is it new?"}) + "\n")
    text = CHOICE.replace("{test: data/test.jsonl}", "{test: data/test.jsonl, train: data/train.jsonl}")
    for more, questions in (("training_split: train\n", ["Q: Is it new?\nA:"]), ("", [])):
        (folder / "task.yaml").write_text(text + more)
        part = evals.build("task_file", {"path": str(folder / "task.yaml")}, texts=None)
        assert [item.question for item in part.examples()] == questions


def test_likelihood_and_generation(folder: Path) -> None:
    last_word = CHOICE.replace("multiple_choice", "loglikelihood").replace("doc_to_choice: options\n", "")
    last_word = last_word.replace('doc_to_text: "Q: {{question}}\\nA:"', "doc_to_text: passage")
    last_word = last_word.replace("doc_to_target: label", 'doc_to_target: " {{question}}"')
    first = items(folder, last_word)[0]
    assert (first.prompt, first.continued(first.target)) == ("p0", " Is it blue?")
    generated = last_word.replace("output_type: loglikelihood", "output_type: generate_until")
    generated += "generation_kwargs: {until: ['?'], max_gen_toks: 9}\nmetric_list: [{metric: bleu}, {metric: f1}]\n"
    first = items(folder, generated)[0]
    assert (first.target, first.stop, first.room) == ("Is it blue?", ("?",), 9)
    part = evals.build("task_file", {"path": str(folder / "task.yaml")}, texts=None)
    assert (part.measured_by, part.title) == (("bleu", "f1"), "colors")


def test_files_include_others(folder: Path) -> None:
    (folder / "base.yaml").write_text(CHOICE)
    found = items(folder, "include: base.yaml\ndoc_to_text: '{{question}}'\n")
    assert [i.prompt for i in found] == [row["question"] for row in ROWS]
    with pytest.raises(UserError, match="include one another more than 8 deep"):
        items(folder, "include: task.yaml\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("doc_to_target: label", "doc_to_target: !function utils.target"), "`!function` names code, which is not run"),
        (("doc_to_target: label", "doc_to_target: label\nprocess_docs: utils"), "`process_docs` names code"),
        (("doc_to_target: label", "doc_to_target: label\nclass: utils.Task"), "`class` names code"),
        (("doc_to_target: label", "doc_to_target: !!python/name:os.system x"), "no YAML"),
        (("{{question}}", "{{answer}}"), "'answer' is undefined; its fields are question, options, label, passage"),
        (("{{question}}", "{{question.__class__.__mro__}}"), "access to attribute '__class__'"),
        (("doc_to_choice: options", "doc_to_choice: '{{question}}'"), "gives 'Is it blue?'; expected a list"),
        (("doc_to_target: label", "doc_to_target: '7'"), "expected an index from 0 to 1"),
        (("dataset_path: json", "dataset_path: allenai/ai2_arc"), "is no local file, and nothing is downloaded"),
        (("test.jsonl", "other.jsonl"), "there is no file"),
        (("{test: data", "{train: data"), "data_files has no file for the split `test`; it has train"),
        (("test_split: test\n", ""), "names no test_split"),
        (("multiple_choice", "winner_takes_all"), "output_type=winner_takes_all; expected one of multiple_choice"),
        (("task: colors", "task: [a, b]"), "a group of tasks"),
        (("task: colors", "tusk: colors"), "`tusk` is not supported"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(folder: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in CHOICE
    with pytest.raises(UserError, match=r"(?s).*\n    try: ") as caught:
        items(folder, CHOICE.replace(*change))
    assert message in str(caught.value)


def test_bad_files(folder: Path) -> None:
    for text, message in (("- a\n- b\n", "expected a task file"), ("a: [", "no YAML")):
        with pytest.raises(UserError, match=message):
            items(folder, text)
    with pytest.raises(UserError, match="needs a file in lm-eval's YAML format"):
        evals.build("task_file", {}, texts=None)
    (folder / "data" / "test.jsonl").write_text("")
    with pytest.raises(UserError, match=r"test\.jsonl|has no records"):
        items(folder, CHOICE)


# As lm_eval/tasks/gsm8k/gsm8k.yaml of lm-eval 0.4.13.
GSM8K = r"""
task: gsm8k
dataset_path: json
dataset_kwargs: {data_files: {test: data/gsm.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
generation_kwargs: {until: ["Question:"], do_sample: false, temperature: 0.0}
repeats: 1
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\-?[0-9\\.\\,]+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {function: take_first}]
"""


def gsm8k(folder: Path, text: str = GSM8K, **knobs):
    (folder / "data" / "gsm.jsonl").write_text(
        json.dumps({"question": "6*7*10?", "answer": "Steps.\n#### 1,420"}) + "\n"
    )
    (folder / "gsm.yaml").write_text(text)
    return evals.build("task_file", {"path": str(folder / "gsm.yaml"), **knobs}, texts=None)


@pytest.mark.parametrize(
    ("entry", "answer", "right"),
    [
        ("", "So.\n#### 1420", True), ("", "It is 1420.", False), ("strict-match", "#### 1,420.", True),
        ("flexible-extract", "It is 1420.", True), ("flexible-extract", "1420 or 7", False),
        ("flexible-extract", "none", False), ("flexible-extract", "It costs $1,420", True),
    ],
)  # fmt: skip
def test_generated_answers_are_read_as_the_file_says(folder: Path, entry: str, answer: str, right: bool) -> None:
    part = gsm8k(folder, filter=entry)
    (item,) = part.items()
    assert part.measured_by == ("exact_match",) and item.target == "1420"
    assert metrics.build("exact_match")(part.read(answer), item.target) == float(right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("function: take_first}]\n  - name: flex", "function: majority_vote}]\n  - name: flex"),
            "step `majority_vote`",
        ),
        (("group_select: -1", "group: -1"), None),
        (('regex_pattern: "#### (', 'regex_pattern: "#### (('), "the step `regex` of filter_list"),
        (('regex_pattern: "####', 'pattern: "####'), "has the setting `pattern`"),
        (("ignore_punctuation", "ignore_commas"), "has the option `ignore_case`; expected ignore_case, ignore_punct"),
        (("repeats: 1", "repeats: 8"), "repeats=8: one answer is drawn"),
        (("repeats: 1", "fewshot_config: {samples: []}"), "fewshot_config.samples is not supported"),
    ],
)
def test_what_would_change_the_answers_is_named(folder: Path, change: tuple[str, str], message: str | None) -> None:
    assert change[0] in GSM8K
    if message is None:  # the entry is not the one that is read
        gsm8k(folder, GSM8K.replace(*change))
        return
    with pytest.raises(UserError, match=r"(?s)gsm\.yaml: .*\n    try: ") as caught:
        gsm8k(folder, GSM8K.replace(*change))
    assert message in str(caught.value)


def test_what_is_left_out_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="has no such filter; did you mean strict-match"):
        gsm8k(folder, filter="strict")
    log_once.cache_clear()
    gsm8k(folder, GSM8K.replace("temperature: 0.0", "temperature: 0.7"))
    items(folder, CHOICE + "metric_list: [{metric: acc}, {metric: mcc}]\n")
    assert "generation_kwargs.temperature is not read; decode=NAME chooses the decoding" in caplog.text
    assert "metric_list names mcc, which no metric here has" in caplog.text
    whole = CHOICE.replace("multiple_choice", "loglikelihood_rolling").replace(
        "doc_to_target: label", "doc_to_target: ''"
    )
    items(folder, whole + "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n")
    assert "metric_list names word_perplexity, which" in caplog.text
    assert evals.build("task_file", {"path": str(folder / "task.yaml")}, texts=None).measured_by == ("perplexity",)
    contexts = CHOICE.replace('doc_to_text: "Q: {{question}}\\nA:"', "doc_to_text: label")
    with pytest.raises(UserError, match="doc_to_text gives the number 0: several contexts"):
        items(folder, contexts)


def test_items_equal_those_of_lm_eval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, choices and correct answers of lm-eval itself, with random examples."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import yaml

    text = CHOICE + "num_fewshot: 2\nfewshot_split: test\n"
    task = ConfigurableTask(config=yaml.safe_load(text))
    task.set_fewshot_seed(seed=1234)
    theirs = []
    for doc in task.test_docs():
        prompt = task.fewshot_context(doc, 2)
        theirs.append((prompt, tuple(task.doc_to_choice(doc)), task.doc_to_target(doc)))
    assert [(i.prompt, i.choices, i.gold) for i in items(folder, text)] == theirs
