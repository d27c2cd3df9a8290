"""A run folder as an object: its files and its model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.api import adapter
from ablatio.api.frames import frame
from ablatio.api.held_out import held_out_scores
from ablatio.api.session import computing
from ablatio.errors import UserError
from ablatio.registry import kinds
from ablatio.storage.json_files import read_object_if_any
from ablatio.storage.paths import shell_word

if TYPE_CHECKING:
    from pandas import DataFrame

    from ablatio.data.types import Tokenizer
    from ablatio.model.language_model import LanguageModel
    from ablatio.model.prompting.types import Reply
    from ablatio.training.prepare import PreparedRun


def open_run(folder: "str | Path", step: int | None = None) -> "RunFolder":
    """Open a run folder that `ablatio.train` or the command line wrote.

        run = ablatio.open_run("runs/first")
        run.summary["val/bpb"], run.generate("The people", tokens=40)

    step  load the weights of the checkpoint of this step; by default the newest

    Raises UserError if the folder holds no run.
    """
    run = RunFolder(Path(folder).expanduser(), step)
    _ = run.config  # raises at once if there is no run
    return run


class RunFolder:
    """The folder of one run.  Its files are read on each access, its model is loaded on the first.

    folder     path of the run folder
    config     the whole config, resolved: nested dicts
    summary    results: status, scores before and after, steps, tokens, seconds, parameters; empty until the run ends
    manifest   provenance: versions, hashes of code, parts and data, seeds, machine settings
    metrics    logged metrics: a pandas data frame with one line per log entry or validation
    model      the model with the weights of the checkpoint, an nn.Module in evaluation mode
    tokenizer  encode(texts) and decode(ids)
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        self.folder = folder
        self._step = step
        self._loaded: PreparedRun | None = None
        self._scorable = False  # True if the task of `_loaded` has recorded its reference

    def __repr__(self) -> str:
        summary = self.summary
        score = summary.get("score") or {}
        words = [str(summary.get("status", "not finished"))]
        if "steps" in summary:
            words.append(f"{summary['steps']} of {self.config['train']['steps']} steps")
        if isinstance(value := score.get("value"), int | float):
            words.append(f"{score['name']} {value:.4f}")
        return f"<ablatio run {self.folder}: {', '.join(words)}>"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole config, resolved: nested dicts."""
        from ablatio.training.run_folder import read_run

        return read_run(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The results in summary.json; empty until the run ends."""
        return read_object_if_any(self.folder / "summary.json")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The provenance in manifest.json."""
        return read_object_if_any(self.folder / "manifest.json")

    @property
    def metrics(self) -> "DataFrame":
        """The logged metrics as a data frame; UserError if nothing is logged yet."""
        from ablatio.storage.json_files import damaged
        from ablatio.training.metrics_csv import MetricsFile, numbers

        path = self.folder / "metrics.csv"
        try:
            found = MetricsFile(path).read()
        except FileNotFoundError:
            raise UserError(
                f"{self.folder} has logged nothing yet: it has no metrics.csv\n"
                f"    try: ablatio resume {shell_word(self.folder)}"
            ) from None
        with damaged(str(path), "rows of numbers"):
            rows = [numbers(row) for row in found]
        return frame("metrics", rows, list(found[0]) if found else None)

    @property
    def step(self) -> int:
        """Step of the checkpoint whose weights `model` has."""
        if self._loaded is None and self._step is None:
            self._run()
        return int(self._step or 0)

    @property
    def model(self) -> "LanguageModel":
        """The model with the weights of the checkpoint, in evaluation mode."""
        return self._run().model

    @property
    def tokenizer(self) -> "Tokenizer":
        """The run's tokenizer."""
        return self._run().tokenizer

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Return the prompt with its continuation; with chat=True the answer to the prompt alone.

            run.generate("The people", tokens=40, temperature=0.7)
            run.generate("The people", decode={"name": "beam", "width": 8}, stop=["."])

        The settings are those of `generate_many`.
        """
        return self.generate_many([prompt], **settings)[0]

    def generate_many(
        self,
        prompts: Sequence[str],
        *,
        tokens: int = 200,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 1,
        chat: bool = False,
        system: str = "",
        decode: "str | Mapping[str, Any] | None" = None,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        second: "str | Path | None" = None,
        reward: "str | Mapping[str, Any] | None" = None,
        samples: int = 1,
    ) -> list[str]:
        """Continue several prompts in one batch; the texts of a prompt are consecutive, best first.

        tokens       maximum number of new tokens
        temperature  0 always takes the most probable token; by default 0.8
        top_k        sample from the k most probable tokens only; 0: all
        top_p        sample from the smallest set of most probable tokens with this total probability; by default 0.95
        seed         of the sampling: the same call gives the same text
        chat         True: each prompt is a question to a chat model; only its answer is returned
        system       with chat=True: the system message
        decode       how tokens are chosen, "beam", or with settings {"name": "beam", "width": 8}; by default sampling.
                     temperature, top_k and top_p are then settings of it
        stop         strings that end a text
        choices      texts of which the continuation must be one
        second       run folder of the second model, for decoding with two models
        reward       what decode=best_of_n ranks by with by="judge": a rule, "length", or with settings as `decode`
        samples      texts of each prompt
        """
        from ablatio.api.decoding import generate

        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return generate(
            self, prompts, open_run=lambda folder: type(self)(folder, None), tokens=tokens,
            given={k: v for k, v in given.items() if v is not None}, seed=seed, chat=chat, system=system,
            decode=decode, stop=stop, choices=choices, second=second, reward=reward, samples=samples,
        )  # fmt: skip

    def answer(
        self,
        question: str,
        *,
        prompt: "str | Mapping[str, Any]",
        examples: Sequence[Any] = (),
        choices: Sequence[str] = (),
        decode: "str | Mapping[str, Any] | None" = None,
        tokens: int = 64,
        seed: int = 1,
        reward: "str | Mapping[str, Any] | None" = None,
    ) -> "Reply":
        """Answer a question by a prompt program: the Reply (ablatio.model.prompting.types).

            run.answer("2+3=", prompt={"name": "few_shot", "shots": 2}, examples=[Example("1+1=", "2"), ...])

        prompt    the program, as `decode` of `generate_many`
        examples  solved questions (ablatio.model.prompting.types.Example)
        choices   the answers to choose from, if they are given
        decode    how tokens are chosen, as of `generate_many`; by default the most probable ones
        reward    a rule that judges answers, for programs with a verifier
        """
        from ablatio.api.decoding import answer

        return answer(
            self, question, prompt=prompt, examples=examples, choices=choices, decode=decode, tokens=tokens, seed=seed,
            reward=reward,
        )  # fmt: skip

    @property
    def template(self) -> Any:
        """The run's chat template."""
        return self._run().setup.template

    def evaluate(
        self,
        length: int | None = None,
        *,
        tokens: int = 0,
        objective: str | None = None,
        quantization: str | None = None,
        stride: int | None = None,
        adapt: float | None = None,
        adapter: str | None = None,
    ) -> dict[str, Any]:
        """Score `model`, as it is now, on held-out text.

        length        tokens per row; by default that of training
        tokens        maximum number of scored tokens; 0: the whole split
        objective     score this objective instead of that of training
        quantization  score a quantized copy of the model (int8, int4); `cost` is the increase of its loss
        stride        score every token with at least length - stride tokens before it: rows overlap, and each begins
                      `stride` tokens after the one before; null: rows follow one another
        adapt         test-time training: after a batch has been scored, take a step of gradient descent on it with this
                      learning rate (arXiv:1709.07432); the weights are put back afterwards
        adapter       name of a peft= method whose new weights `adapt` trains; null: the weights that the run trained

        Returns the length, the scores of the run's task (`loss` in nats per token, `bpb` in bits per byte, ...), those
        of each source of a mixture (`loss/NAME`, `bpb/NAME`), the standard error of the loss and the number of tokens.
        Raises UserError if the model does not support that length.
        """
        lengths = None if length is None else [length]
        # The last row is the quantized one if there is one, else the only one.
        scoring: dict[str, Any] = {"stride": stride, "adapt": adapt, "adapter": adapter}
        found = self.evaluate_lengths(
            lengths, tokens=tokens, objective=objective, quantization=quantization, **scoring
        )[-1]
        if "refused" in found:
            own = self.config["data"]["length"] or self.config["model"]["max_len"]
            raise UserError(f"length {found['length']} is refused: {found['refused']}\n    try: length={own}")
        return found

    def evaluate_lengths(
        self,
        lengths: Sequence[int] | None = None,
        *,
        tokens: int = 0,
        objective: str | None = None,
        quantization: str | None = None,
        stride: int | None = None,
        adapt: float | None = None,
        adapter: str | None = None,
    ) -> list[dict[str, Any]]:
        """Like `evaluate`, for several lengths: dicts of plain scores, of quantized ones, of refused lengths.

        A length that the model does not support gives {"length": ..., "refused": reason}.
        """
        with computing():
            run = self._for_scores(fresh=bool(objective or quantization or adapt))
            if objective:
                run.ask(objective)
            if adapter:
                _add_adapter(run, adapter, adapt)
            rows: list[dict[str, Any]] = []
            refused: list[dict[str, Any]] = []
            for length in lengths or [run.length]:
                try:
                    rows.append(held_out_scores(run, length, tokens, stride, adapt))
                except UserError as error:
                    # Only what is wrong: the advice below the first line is for a whole command.
                    refused.append({"length": length, "refused": str(error).split("\n")[0]})
            if quantization:
                _quantize(run, quantization)
                for row in list(rows):
                    found = held_out_scores(run, row["length"], tokens, stride, adapt)
                    cost = {"cost": found["loss"] - row["loss"]} if "loss" in row else {}
                    rows.append(found | {"quantization": quantization} | cost)
        return rows + refused

    def measure(self, *overrides: str, code: bool = False, save: bool = True) -> dict[str, dict[str, Any]]:
        """Measure `model` by evaluations: `run.measure("eval=[addition,dyck]", "metric=[accuracy]")`.

        overrides  settings of `eval` and `metric`, as on the command line
        code       True if metrics may run programs that the model wrote
        save       write items and values to items.jsonl and evaluations.json in the run folder, for report and compare

        Returns {"eval/addition/accuracy": {"value", "error", "items", "better"}}; `error` is the standard error over
        the choice of items.  Raises ConfigError for settings that cannot be used, UserError for a metric that needs
        labels that the items do not have.
        """
        return self.measure_by(adapter.Measures.of(overrides, code=code), save=save)

    def measure_by(self, measures: adapter.Measures, *, save: bool = True) -> dict[str, dict[str, Any]]:
        """Like `measure`, with settings that are checked."""
        return adapter.measured(self._run(), self.step, self.folder, measures, save=save)

    def artifact(self, quantization: str | None = None) -> dict[str, int]:
        """Count the bytes of `model` as an artifact: what a reader needs who has the framework.

        quantization  round the weights first (int6, gptq); by default as the run does, with qat=true for good

        Returns `weights`, codes as they are and numbers in 16 bits; `compressed`, the same after LZMA; `code`, the
        compressed sources of the parts in the model, with their settings; `artifact`, the sum of the last two.
        """
        from ablatio.model.cost.artifact import code_bytes, compressed_bytes, stored_bytes

        with computing():
            run, node = self._for_scores(fresh=True), self.config.get("quantization") or {}
            if quantization:
                _quantize(run, quantization)
            elif node.get("qat"):
                # qat=true only wraps the weights for training; what is stored is rounded.
                _quantize(run, node["name"], {**node, "qat": False})
            compressed, code = compressed_bytes(run.model), code_bytes(self.config)
            weights = stored_bytes(run.model)
        return {"weights": weights, "compressed": compressed, "code": code, "artifact": compressed + code}

    def _run(self) -> "PreparedRun":
        """Load the run that `model` belongs to, once.

        It is loaded ready for scoring unless its task needs a reference: that costs time, and the model that the run
        began with may be gone.
        """
        if self._loaded is None:
            self._scorable = not adapter.needs_reference(self.config)
            with computing():
                self._loaded = self._restored(scored=self._scorable)
        return self._loaded

    def _for_scores(self, *, fresh: bool) -> "PreparedRun":
        """Return the run, ready for scoring.

        fresh  True: a copy that may be modified, with the current weights of `model`
        """
        if not fresh and (self._scorable or not adapter.needs_reference(self.config)):
            return self._run()
        run = self._restored(scored=True)
        if self._loaded is not None:
            # The caller may have changed the weights since they were loaded.
            run.model.load_state_dict(self._loaded.model.state_dict())
        elif not fresh:
            self._loaded, self._scorable = run, True
        return run

    def _restored(self, *, scored: bool) -> "PreparedRun":
        """Load the run and remember the step of its checkpoint."""
        run, self._step = adapter.restored(self.folder, self._step, scored=scored)
        return run


def _quantize(run: "PreparedRun", name: str, node: Mapping[str, Any] | None = None) -> None:
    """Quantize the run's model; a method that is calibrated reads training batches."""
    quantizer: Any = kinds.quantizations.build(name, {k: v for k, v in (node or {}).items() if k != "name"})
    if hasattr(quantizer, "calibrate"):
        quantizer.calibrate(run.model, run.feed)
    quantizer.apply(run.model)


def _add_adapter(run: "PreparedRun", name: str, adapt: float | None) -> None:
    """Add the weights of a peft method to the run's model, to be trained as it is scored."""
    from ablatio.model.peft.apply import apply_peft

    if adapt is None:
        raise UserError(f"--adapter {name} adds weights for test-time training, and no learning rate is given\n"
                        f"    try: --adapt 0.01 --adapter {name}")  # fmt: skip
    apply_peft(run.model, kinds.pefts.build(name), int(run.config["seed"]))
