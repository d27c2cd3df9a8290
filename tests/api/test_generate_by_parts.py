"""Decode parts and prompt programs on a run: from Python and by `ablatio generate`."""

import json
from pathlib import Path

import pytest

import ablatio
from ablatio.cli.generate import _words
from ablatio.cli.main import main
from ablatio.model.prompting.types import Example, Reply


@pytest.fixture(scope="session")
def small(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> "ablatio.RunFolder":
    """A smaller run with the same token ids."""
    more = ("model.d_ff=24", "train.steps=4", "seed=2")
    return ablatio.train(*settings, *more, name="small", out=tmp_path_factory.mktemp("runs"), quiet=True)


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["decode=greedy"], ["decode=beam", "decode.width=3"], ["decode=sample", "decode.min_p=0.2"],
        ["decode=contrastive_search"], ["decode=best_of_n", "decode.by=judge", "reward=length"],
    ],
)  # fmt: skip
def test_the_command_and_the_api_say_the_same(
    run: "ablatio.RunFolder", words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed([str(run.folder), "the people", "--tokens", "6", *words], capsys)
    node = {w.partition("=")[0].removeprefix("decode.").replace("decode", "name"): w.partition("=")[2] for w in words}
    reward = node.pop("reward", None)
    typed = {k: {"3": 3, "0.2": 0.2}.get(v, v) for k, v in node.items()}
    assert text == run.generate("the people", tokens=6, decode=typed, reward=reward) + "\n"
    assert text.startswith("the people") and len(text.encode()) >= len("the people")


def test_flags_are_settings_of_the_part(run: "ablatio.RunFolder", capsys: pytest.CaptureFixture[str]) -> None:
    flags = printed([str(run.folder), "the", "--tokens", "6", "decode=sample", "--top-k", "3", "--seed", "5"], capsys)
    assert flags == run.generate("the", tokens=6, decode={"name": "sample", "top_k": 3}, seed=5) + "\n"
    zero = printed([str(run.folder), "the", "--tokens", "6", "--temperature", "0"], capsys)
    assert zero == run.generate("the", tokens=6, decode="greedy") + "\n"


def test_a_second_model(
    run: "ablatio.RunFolder", small: "ablatio.RunFolder", capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run.folder), "the", "--tokens", "5", "decode=speculative", "--temperature", "0"]
    assert printed([*words, f"second={small.folder}"], capsys) == run.generate("the", tokens=5, temperature=0) + "\n"
    assert main(["generate", str(run.folder), "the", "decode=contrastive"]) == 2
    assert "second=runs/small" in capsys.readouterr().err


def test_beams_give_several_texts(run: "ablatio.RunFolder") -> None:
    found = run.generate_many(["the"], tokens=5, decode={"name": "beam", "width": 4}, samples=3)
    assert len(found) == len({*found}) == 3
    assert len(run.generate_many(["the", "a"], tokens=5, samples=2)) == 4


def test_stop_strings_and_choices(
    run: "ablatio.RunFolder", capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plain = run.generate("the people", tokens=12, temperature=0)
    letter = plain[len("the people") + 3]
    cut = run.generate("the people", tokens=12, temperature=0, stop=[letter])
    assert cut == plain[: plain.index(letter, len("the people"))]
    assert not caplog.text
    assert run.generate("the people", tokens=12, temperature=0, stop=["never said"]) == plain
    assert "no stop string ('never said') came within 12 tokens in 1 of 1 texts" in caplog.text
    for decode in ("greedy", "beam", "sample"):
        said = run.generate("peace:", decode=decode, choices=[" yes", " no", " none"])
        assert said.removeprefix("peace:") in (" yes", " no", " none")
    words = [str(run.folder), "peace:", "--choices", " yes| no", "decode=greedy"]
    assert printed(words, capsys).rstrip("\n") in ("peace: yes", "peace: no")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["decode=bem"], "did you mean beam"),
        (["decode=beam", "decode.width=0"], "decode.width"),
        (["decode=beam", "--temperature", "0.5"], "decode=beam has no temperature"),
        (["decode.width=3"], "decode.width is a setting of no decode"),
        (["second=runs/x"], "uses one model"),
        (["reward=length"], "decode.by=judge"),
        (["decode=best_of_n", "decode.by=judge"], "none was given"),
        (["decode=best_of_n", "decode.by=judge", "reward=ranking"], "not a function of one answer"),
        (["examples=x.jsonl"], "prompt=few_shot"),
        (["prompt=few_shot"], "none were given"),
        (["prompt=few_shot", "examples=nowhere.jsonl"], "cannot be read"),
        (["prompt=zero_shot", "examples=solved.jsonl"], "prompt=zero_shot with these settings shows no solved"),
        (["prompt=chain_of_thought", "prompt.shots=0", "examples=solved.jsonl"], "shows no solved examples"),
        (["prompt=chain_of_thought", "prompt.shots=0", "--choices", "a|b"], "--choices has no effect"),
        (["prompt=self_consistency", "prompt.shots=0", "prompt.draws=2", "decode=beam"], "draws its samples by itself"),
        (["prompt=zero_shot", "--choices", "a|b", "decode=greedy"], "scores the choices"),
        (["prompt=zero_shot", "--chat"], "--chat has no effect with prompt="),
        (["prompt=zero_shot", "--system", "you"], "--system has no effect with prompt="),
        (["prompt=zero_shot", "--top-k", "5"], "--top-k has no effect with prompt="),
        (["prompt=zero_shot", "--top-p", "0.5"], "--top-p has no effect with prompt="),
        (["--system", "you"], "PROMPT --chat --system you"),
        (["more", "texts"], "expected one, in quotes"),
        (["--stop", ""], "a stop string is empty"),
        (["--samples", "0"], "expected 1 or more"),
        (["--tokens", "-1"], "expected 0 or more"),
    ],
)
def test_wrong_words_are_refused(
    run: "ablatio.RunFolder", words: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("solved.jsonl").write_text('{"question": "2+3=", "answer": "5"}\n', encoding="utf-8")
    assert main(["generate", str(run.folder), "the", *words]) == 2
    assert reason in capsys.readouterr().err


def test_a_prompt_that_is_longer_than_the_context(
    settings: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned positions end at max_len=16: a longer prompt is refused, a continuation ends there."""
    own = ablatio.train(*settings, "position=learned", "train.steps=1", name="learned", out=tmp_path, quiet=True)
    for decode in ("greedy", "beam", "contrastive_search", "sample"):
        with pytest.raises(ablatio.UserError, match=r"at most model\.max_len=16"):
            own.generate("a" * 30, decode=decode)
        assert 11 < len(own.generate("a" * 10, tokens=40, decode=decode)) <= 16
    draft = own.generate("a" * 10, tokens=40, decode={"name": "speculative", "temperature": 0}, second=own.folder)
    assert draft == own.generate("a" * 10, tokens=40, temperature=0)


def test_a_question_is_answered_by_a_program(
    run: "ablatio.RunFolder", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [Example("who?", "the people", "they live here"), Example("what?", "peace", "they want it")]
    file = tmp_path / "examples.jsonl"
    rows = [{"question": e.question, "answer": e.answer, "rationale": e.rationale} for e in examples]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    for name in ("few_shot", "chain_of_thought", "self_consistency", "tree_of_thoughts"):
        knobs = {"self_consistency": {"draws": 2}, "tree_of_thoughts": {"shots": 1}}.get(name, {})
        reply = run.answer("why?", prompt={"name": name, **knobs}, examples=examples, tokens=5)
        assert isinstance(reply, Reply) and reply == run.answer(
            "why?", prompt={"name": name, **knobs}, examples=examples, tokens=5
        )
        words = [f"prompt.{k}={v}" for k, v in knobs.items()]
        out = printed([str(run.folder), "why?", f"prompt={name}", *words, f"examples={file}", "--tokens", "5"], capsys)
        assert out.endswith(f"answer: {reply.answer}\n")
        used = reply.usage
        assert (
            used is not None
            and used.calls >= 1
            and used.read > len("why?")
            and 0 < used.generated <= 5 * used.calls * 2
        )
    verified = run.answer(
        "why?", prompt={"name": "verifier", "draws": 3}, examples=examples, tokens=5,
        reward={"name": "length", "target": 5},
    )  # fmt: skip
    assert len(verified.candidates) == 3 and max(s for _, s in verified.candidates) > 0
    chosen = run.answer("why?", prompt="few_shot", examples=examples, choices=["peace", "work"])
    assert chosen.answer in ("peace", "work") and sum(chosen.choice_probabilities) == pytest.approx(1)
    file.write_text('{"question": "who?"}\n', encoding="utf-8")
    assert main(["generate", str(run.folder), "why?", "prompt=few_shot", f"examples={file}"]) == 2
    assert "line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("2", 2),
        ("true", True),
        ("null", None),
        ("[a,b]", ["a", "b"]),
        ("'x y'", "x y"),
        ("a, b", "a, b"),
    ],
)
def test_knobs_are_read_as_everywhere(text: str, value: object) -> None:
    assert _words(["decode=sample", f"decode.knob={text}"])[1] == {"decode": {"name": "sample", "knob": value}}
