"""Evaluations in runs: at the end and along training, on resume, of a finished run, and in a sweep."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio import open_run
from ablatio.errors import UserError
from ablatio.training.evaluation.items_file import read_items, write_items

EVAL = ("eval=[dyck,addition]", "eval.dyck.items=12", "eval.addition.items=8", "eval.addition.shots=0")
DYCK, ADDITION = "eval/dyck/likelihood_choice", "eval/addition/accuracy"


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"Paragraph {i}: the river runs by the old town, and people meet on bridge {i % 7}." for i in range(60)]
    path.write_text("\n\n".join(lines))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A finished run with evaluations at its end and every six steps."""
    out = tmp_path_factory.mktemp("evaluated")
    settings = [*TINY, f"source.path={text_file}", f"out={out}", *EVAL, "train.eval_every=6"]
    done = ablatio(["train", *settings, "name=whole"], out / "log")
    assert done.code == 0, done.err
    return out / "whole"


def test_a_run_is_evaluated_at_its_end_and_along_training(run: Path) -> None:
    found, rows = summary(run), metrics(run)
    scores = [(int(r["step"]), float(r[DYCK])) for r in rows if r[DYCK]]
    assert [step for step, _ in scores] == [0, 6, 12]
    assert found[DYCK] == pytest.approx(scores[-1][1])
    value = found["evaluation"]["values"][DYCK]  # type: ignore[index]
    items = [row for row in read_items(run) if row["eval"] == "dyck"]
    by_item = [row["values"][DYCK] for row in items]
    assert value["items"] == len(by_item) == 12 and value["value"] == pytest.approx(sum(by_item) / 12)
    p = value["value"]
    assert value["error"] == pytest.approx((p * (1 - p) / 11) ** 0.5)  # standard error of a proportion, n - 1
    assert {row["step"] for row in items} == {12}


def test_an_evaluation_changes_nothing_else(run: Path, text_file: Path, tmp_path: Path) -> None:
    plain = ablatio(["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=plain"], tmp_path / "log")
    assert plain.code == 0, plain.err
    with_it, without = summary(run), summary(tmp_path / "plain")
    assert with_it["run"] != without["run"]  # train.eval_every is a setting of the training, eval is not
    assert with_it["after"] == without["after"] and with_it["train_flops"] == without["train_flops"]
    assert not (tmp_path / "plain" / "items.jsonl").exists()
    config = json.loads((run / "config.json").read_text())
    from ablatio.training.run_folder import run_id

    bare = {**config, "train": {**config["train"], "eval_every": None}}
    assert run_id(bare) == run_id({**bare, "eval": {}, "metric": {}}) == without["run"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_values(run: Path, text_file: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *EVAL, "train.eval_every=6"]
    cut = cut_and_resumed(settings, tmp_path)
    assert summary(cut)["evaluation"] == summary(run)["evaluation"]
    assert metrics(cut) == metrics(run) and read_items(cut) == read_items(run)


def test_a_finished_run_is_measured_by_the_command_line_and_from_python(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    words = ["evaluate", str(copy), "--json", *EVAL[:2], *EVAL[2:], "metric=[accuracy,f1]"]
    done = ablatio(words, tmp_path / "log")
    assert done.code == 0, done.err
    values = json.loads(done.out)["values"]
    assert values[ADDITION]["value"] == pytest.approx(summary(run)[ADDITION])
    assert values["eval/dyck/f1"]["items"] == 12
    assert "answer" in read_items(copy)[0]
    again = open_run(run).measure(*EVAL, save=False)
    assert again[DYCK]["value"] == pytest.approx(summary(run)[DYCK])
    assert read_items(run)[0].keys() == read_items(copy)[0].keys() - {"answer"}


def test_the_task_evaluate_scores_a_model_without_training_it(run: Path, text_file: Path, tmp_path: Path) -> None:
    settings = ["task=evaluate", "model.start=run", f"model.path={run}", f"source.path={text_file}", "name=scored"]
    words = [s for s in TINY if s.startswith(("data", "trainer"))]
    done = ablatio(["train", *settings, *words, "source=text", TINY[6], f"out={tmp_path}", *EVAL], tmp_path / "log")
    assert done.code == 0, done.err
    found, trained = summary(tmp_path / "scored"), summary(run)
    assert (found["status"], found["steps"], found["tokens"], found["train_flops"]) == ("done", 0, 0, 0)
    for name in ("val/loss", DYCK, ADDITION):
        assert found[name] == pytest.approx(trained[name], rel=1e-6)
    told = ablatio(["compare", str(run), str(tmp_path / "scored")], tmp_path / "log")
    assert told.code == 0, told.err
    assert "12 items; no difference is shown: second - first = +0" in told.out
    listed = ablatio(["runs", str(tmp_path / "scored"), "--json"], tmp_path / "log")
    assert json.loads(listed.out)[0]["state"] == "done"
    reported = ablatio(["report", str(tmp_path / "scored"), "--out", str(tmp_path / "report")], tmp_path / "log")
    assert reported.code == 0 and "damaged" not in (tmp_path / "report" / "report.md").read_text()


def test_runs_are_compared_by_the_score_that_is_chosen(text_file: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *EVAL, f"score={DYCK}", "train.steps=4"]
    done = ablatio(["train", *settings, "name=one"], tmp_path / "log")
    assert done.code == 0, done.err
    found = summary(tmp_path / "one")
    assert found["score"] == {"name": DYCK, "value": found[DYCK], "better": "higher"}
    listed = ablatio(["runs", str(tmp_path), "--json"], tmp_path / "log")
    assert json.loads(listed.out)[0]["score_name"] == DYCK


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval=[addition]", "metric=[likelihood_choice]"), "needs `choices`, which its items of eval=addition do not"),
        (("metric=[accuracy]",), "metric=accuracy has nothing to measure: no evaluation is chosen"),
        (("eval=[dyck]", "score=eval/dyck/accuracy"), "this run has no such score"),
        (("eval=[addition]", "metric=[pass_at_k]"), "must be allowed on the command line"),
        (("eval=[task_file]", "eval.task_file.path=/nowhere.yaml"), "/nowhere.yaml: No such file"),
        (("eval=[dyk]",), "there is no `dyk`; did you mean dyck?"),
    ],
)
def test_bad_input_is_refused_before_training(
    words: tuple[str, ...], message: str, text_file: Path, tmp_path: Path
) -> None:
    done = ablatio(
        ["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", *words, "name=bad"], tmp_path / "log"
    )
    assert done.code == 2 and message in done.err, done.err
    assert "try: " in done.err and not (tmp_path / "bad").exists()


def test_an_evaluation_without_items_is_refused(run: Path) -> None:
    from ablatio.registry import kinds
    from ablatio.training.evaluation.access import Access
    from ablatio.training.evaluation.evaluation import Evaluation

    access = Access(lambda split: iter(()), lambda folder: lambda requests: [])
    knobs = kinds.evals["held_out"].defaults
    with pytest.raises(UserError, match="eval=held_out has no items"):
        Evaluation.of({"eval": {"held_out": knobs}, "metric": {}}, access)


def test_only_evaluations_can_be_chosen_for_a_finished_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer.lr=1: only evaluations and metrics"):
        open_run(run).measure("eval=[dyck]", "optimizer.lr=1")


def test_items_of_other_evaluations_are_kept(tmp_path: Path) -> None:
    row = {"step": 1, "id": "0", "item": "x", "cluster": "", "prompt": "", "values": {"m": 1.0}}
    write_items(tmp_path, [{**row, "eval": "a"}, {**row, "eval": "b"}])
    write_items(tmp_path, [{**row, "eval": "b", "values": {"m": 0.0}}])
    assert [(r["eval"], r["values"]["m"]) for r in read_items(tmp_path)] == [("a", 1.0), ("b", 0.0)]
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"step": 1, "eval": 3}\n')
    with pytest.raises(Exception, match=r"line 3 of .*: `eval` is 3; expected text"):
        read_items(tmp_path)


def asked(run: Path, *words: str) -> dict:
    found = open_run(run).measure("eval=[addition]", "eval.addition.items=6", *words, save=False)
    return {name: one["value"] for name, one in found.items()}


def test_a_decode_part_and_a_prompt_program_ask_the_items(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablatio.training.evaluation import evaluation

    seen: list[dict] = []
    usual = evaluation.EvaluationResult
    monkeypatch.setattr(evaluation, "EvaluationResult", lambda values, rows: seen.append(rows) or usual(values, rows))
    text = ("metric=[answer_parse]", "eval.addition.shots=0")
    asked(run, *text)
    asked(run, *text, "decode=sample", "decode.temperature=5.0")
    asked(run, *text, "decode=sample", "decode.temperature=5.0")
    greedy, sampled, again = ([row["answer"] for row in rows] for rows in seen)
    assert greedy != sampled == again
    likely = ("metric=[accuracy]", "eval.addition.shots=0")
    assert asked(run, *likely) != asked(run, *likely, "prompt=zero_shot")
    prompts = [row["prompt"] for row in seen[-1]]
    assert prompts == [row["prompt"] for row in seen[0]]  # the items stay what they are, so that runs can be paired


@pytest.mark.parametrize(
    "words",
    [
        ["metric=[accuracy]", "decode=greedy"], ["metric=[accuracy]", "decode=beam", "prompt=zero_shot"],
        ["metric=[accuracy,perplexity]", "decode=sample"], ["metric=[perplexity]", "decode=beam"],
    ],
)  # fmt: skip
def test_a_decode_part_that_nothing_asks_is_refused(run: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"decode=.* has no effect: metric=") as refused:
        asked(run, *words)
    assert "metric=[answer_parse]" in str(refused.value)


@pytest.mark.parametrize("word", ["decode=greedy", "prompt=zero_shot"])
def test_task_evaluate_without_an_evaluation_uses_neither(run: Path, tmp_path: Path, word: str) -> None:
    start = ["task=evaluate", "model.start=run", f"model.path={run}"]
    done = ablatio(["train", *start, word, f"out={tmp_path}"], tmp_path / "log")
    assert done.code == 2 and f"{word} has no effect: no evaluation is chosen" in done.err, done.err


def test_a_prompt_program_shows_other_items_and_its_answers_count() -> None:
    from ablatio.registry import kinds
    from ablatio.testing.scripted_model import ScriptedModel
    from ablatio.training.evaluation.access import Access
    from ablatio.training.evaluation.evaluation import Evaluation
    from ablatio.training.evaluation.prompting import Prompting

    knobs = kinds.evals["addition"].defaults | {"items": 5, "shots": 0, "digits": 1}
    metric = {"answer_parse": kinds.metrics["answer_parse"].defaults | {"find": "number"}}
    config = {"eval": {"addition": knobs}, "metric": metric, "prompt": {"name": "few_shot"}}
    evaluation = Evaluation.of(config, Access(lambda split: iter(()), lambda folder: None))
    assert evaluation is not None
    (measure,) = evaluation.measures
    assert len(measure.examples) == 5 and not {i.prompt for i in measure.examples} & {
        i.prompt for i in measure.items[:1]
    }

    def says(prompt: str, number: int) -> str:
        a, b = prompt.rsplit("Q: ", 1)[1].split("=")[0].split("+")
        return f" The answer is {int(a) + int(b)}."

    def prompting(config):
        found = Prompting.of(config, ScriptedModel(says=says))
        assert found is not None
        return found

    written = prompting({"prompt": {"name": "few_shot", "shots": 2}}).written(measure.items, measure.examples)
    assert all(item.prompt.count("Q: ") == 3 and item.prompt.endswith(f"Q: {item.question}\nA:") for item in written)
    voting = prompting({"prompt": {"name": "self_consistency", "draws": 3, "shots": 0}})
    found = evaluation.run(lambda requests: [], voting)
    assert found.numbers["eval/addition/answer_parse"] == 1.0
    # Three answers to each question, counted in characters by the scripted model.
    prompts = [f"Q: {item.question}\nA: Let's think step by step." for item in measure.items]
    assert found.numbers["eval/addition/tokens_read"] == pytest.approx(3 * sum(map(len, prompts)) / 5)
    said = [says(prompt, 0) for prompt in prompts]
    assert found.numbers["eval/addition/tokens_generated"] == pytest.approx(3 * sum(map(len, said)) / 5)
    assert found.values["eval/addition/tokens_generated"].better == "lower"
    with pytest.raises(UserError, match="asks for likelihoods or samples, and prompt=self_consistency"):
        likely = Evaluation.of(config | {"metric": {"accuracy": {}}}, Access(lambda s: iter(()), lambda f: None))
        likely.run(lambda requests: [], voting)
    with pytest.raises(UserError, match="needs a second model"):
        from ablatio.training.evaluation.prompting import decode_part

        decode_part({"decode": {"name": "contrastive"}})


def test_columns_of_a_program_that_answers_hold_its_tokens() -> None:
    from ablatio.registry import kinds
    from ablatio.training.evaluation.access import Access
    from ablatio.training.evaluation.evaluation import Evaluation

    knobs = kinds.evals["addition"].defaults | {"items": 2}
    config = {"eval": {"addition": knobs}, "metric": {"answer_parse": {}}}
    tokens = ["eval/addition/tokens_read", "eval/addition/tokens_generated"]
    for name, more in (("few_shot", []), ("self_consistency", tokens), ("chain_of_thought", tokens)):
        evaluation = Evaluation.of(config | {"prompt": {"name": name}}, Access(lambda s: iter(()), lambda f: None))
        assert evaluation is not None
        assert evaluation.columns == ["eval/addition/answer_parse", "eval/addition/answer_parse/parsed", *more]
        assert all(evaluation.better(column) == "lower" for column in more)


def test_steps_of_the_examples_are_shown_and_the_room_of_the_items_counts() -> None:
    from ablatio.data.items import Item
    from ablatio.testing.scripted_model import ScriptedModel
    from ablatio.training.evaluation.prompting import Prompting

    asked = list[str]()

    def says(prompt: str, number: int) -> str:
        asked.append(prompt)
        return " The answer is 4."

    examples = [Item("0", "", "3", question="1+2", rationale="One and two are three.")]
    items = [Item("0", "Question: 2+2", "4", question="2+2", room=250)]
    model = ScriptedModel(says=says)
    found = Prompting.of({"prompt": {"name": "chain_of_thought", "shots": 1}}, model)
    assert found is not None
    responses, _ = found.answered(items, examples)
    assert [r.texts for r in responses.values()] == [("4",)]
    assert asked == ["Q: 1+2\nA: One and two are three. The answer is 3.\n\nQ: 2+2\nA:"]
    assert model.tokens == 250


def test_whole_texts_are_no_questions() -> None:
    from ablatio.registry import kinds
    from ablatio.training.evaluation.access import Access
    from ablatio.training.evaluation.evaluation import Evaluation

    access = Access(lambda split: iter(["one text", "another text"]), lambda folder: None)
    config = {"eval": {"held_out": kinds.evals["held_out"].defaults}}
    assert Evaluation.of(config | {"metric": {"perplexity": {}}}, access) is not None
    for metric in ("answer_parse", "bleu", "exact_match"):
        with pytest.raises(UserError, match=f"metric={metric} compares generated answers, and items of eval=held_out"):
            Evaluation.of(config | {"metric": {metric: {}}}, access)
