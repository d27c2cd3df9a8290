"""Training loop of a run: log, validate, save and stop between optimizer steps."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from ablatio.config.schema import chosen
from ablatio.errors import Diverged, Preempted
from ablatio.model.optimizer_step import Rewind
from ablatio.model.peft.apply import peak_memory
from ablatio.model.ranks import ranks
from ablatio.registry import kinds
from ablatio.registry.kinds import Logger
from ablatio.storage.checkpoints import Checkpoint, Checkpoints, write_json
from ablatio.storage.paths import shell_word
from ablatio.training.after_step import AfterStep
from ablatio.training.checkpoint_io import RunCheckpointIO, StopRequest
from ablatio.training.evaluation.evaluation import Evaluation
from ablatio.training.evaluation.items_file import write_items
from ablatio.training.lightning_trainer import make_trainer
from ablatio.training.loggers import Logs, NoLogs
from ablatio.training.machine_history import KEY, MachineHistory
from ablatio.training.metrics_csv import MetricsFile
from ablatio.training.precision import precision_columns, precision_settings
from ablatio.training.prepare import PreparedRun
from ablatio.training.progress_bar import RunProgress
from ablatio.training.run_folder import CHECKPOINTS
from ablatio.training.samples_file import SamplesFile
from ablatio.training.task_scores import TaskScores


class TrainingLoop:
    """Trains a run from its start or a checkpoint to its last step, to `until`, or to a stop signal.

    found      the checkpoint to continue from; None: a new run
    until      pause at this step; None: at the last
    callbacks  Lightning callbacks of the caller
    evaluation what the config's `eval` and `metric` measure, at the end and along training; None: nothing
    """

    def __init__(
        self,
        run: PreparedRun,
        folder: Path,
        console: Console,
        checkpoints: Checkpoints,
        found: Checkpoint | None,
        loggers: Mapping[str, Logger],
        until: int | None = None,
        callbacks: Sequence[pl.Callback] = (),
        evaluation: Evaluation | None = None,
    ) -> None:
        self.run, self.folder, self.found, self.callbacks = run, folder, found, callbacks
        self.evaluation = evaluation
        self.io, self.stop = RunCheckpointIO(checkpoints, run.learner.strategy), StopRequest()
        run.learner.stop_asked = lambda: self.stop.signal is not None
        self.io.loaded = found
        self.settings = run.config["train"]
        trains = kinds.tasks[run.config["task"]["name"]].facts["trains"]
        self.steps, self.start = int(self.settings["steps"]) if trains else 0, found.step if found else 0
        self.until = min(until or self.steps, self.steps)
        extra = [m for entry, _ in chosen(run.config) for m in entry.facts.get("metrics", ())]
        extra += run.learner.scheduled.columns if run.learner.scheduled is not None else []
        extra += [*precision_columns(run.machine), *(evaluation.columns if evaluation else ())]
        self.task_scores = TaskScores.of(run.config, run.task.more_scores)
        columns = [*self.task_scores.columns, *extra]
        self.file = Logs(MetricsFile(folder / "metrics.csv", columns), loggers, console) if ranks().first else NoLogs()
        self.samples_file = SamplesFile(folder / "samples.jsonl")
        self.scores: dict[str, Any] = {}
        self.evaluated: dict[str, Any] = {}  # newest values of `evaluation`, as in summary.json
        self.held_out: list[list[float]] = []  # [step, score] of each validation; schedules may watch the scores
        # Step of each spike (at), step that training went back to (to), steps whose batches are skipped, reason (why).
        self.rewinds: list[dict[str, Any]] = []
        self.seconds = 0.0
        # Seconds spent in steps alone, and the time at which the current stretch of steps began.
        self.trained = self.resumed_at = 0.0
        self.stopped_by = ""  # stabilizer that ended the run before its last step
        self.extends = False  # True if `found` is the end of another run, which this one continues
        self.unscored = False  # True if a signal interrupted the validation of the last step
        self.machines = MachineHistory()
        if found:
            self.scores, self.seconds = dict(found.state["scores"]), float(found.state["seconds"])
            self.unscored, self.rewinds = bool(found.state["unscored"]), list(found.state["rewinds"])
            self._remember(found.state.get("held_out", ()))  # missing in folders of older versions
            self.evaluated = dict(found.state.get("evaluated", {}))
            self.trained = float(found.state.get("trained", 0.0))
        shown = run.config["trainer"]["progress"] and ranks().first
        self.progress = RunProgress(console, self.steps, run.task.tokens, self.start, shown=shown)

    def train(self) -> dict[str, Any]:
        """Train, write summary.json, and return the summary.

        Raises Preempted after a stop signal, with a checkpoint written, and Diverged if a loss is not finite or a
        stabilizer has used up its rewinds.
        """
        run = self.run
        self._start_files(self.start if self.found else None)
        with ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.progress)
            if not self.found or self.unscored:
                self._validate_first()
            if self.found and not self.extends:
                self._end_early(self.start)  # a run that was interrupted after it had been ended stays ended
            while self.start < self.until:
                trainer = self._trainer()
                path = str(self.folder / CHECKPOINTS / str(self.start)) if self.found else None
                skipped = sum(r["skipped"] for r in self.rewinds) * self.settings["accumulate"]
                batches = run.training(self.start * self.settings["accumulate"], skipped)
                try:
                    trainer.fit(run.learner, batches, ckpt_path=path)
                    break
                except Rewind as rewind:
                    self._go_back(rewind, trainer.global_step)
                except _Paused:
                    break
        whole = self.until == self.steps or bool(self.stopped_by)
        summary = self.summary("done" if whole else "paused")
        if ranks().first:
            write_json(self.folder / "summary.json", summary)
        self.file.finish("done" if whole else "preempted")
        return summary

    def _start_files(self, after_step: int | None) -> None:
        """Begin metrics and samples, or truncate those of a resumed run to `after_step`."""
        self.file.start(after_step)
        if ranks().first:
            self.samples_file.start(after_step)

    def _trainer(self) -> pl.Trainer:
        machine, precision = self.run.machine, precision_settings(self.run.machine)
        after = AfterStep(self.start, begin=self._begin, after=self.after_step, state=self.extra_state)
        return make_trainer(
            max_steps=self.steps,
            max_epochs=-1,
            accumulate_grad_batches=self.settings["accumulate"],
            accelerator="gpu" if machine.device == "cuda" else "cpu",
            devices=[ranks().local] if machine.device == "cuda" else 1,
            # The caller's callbacks come first: a stop that they request takes effect after the same step.
            callbacks=[*self.callbacks, after],
            plugins=[self.io, *precision.pop("plugins")],
            default_root_dir=str(self.folder),
            **precision,
        )

    def _begin(self, trainer: pl.Trainer) -> None:
        """Begin to listen for stops, and save the step that a rewind or a resume may go back to."""
        self.stop.take()
        # A rewind needs a checkpoint to go back to; after one, the skipped batches must survive a crash.  A run that
        # continues another one is resumed from its own folder.
        if self.rewinds or self.extends or (self.run.learner.rewinds and not self.found):
            self.extends = False
            trainer.save_checkpoint(self.folder / CHECKPOINTS / str(self.start))
        self.resumed_at = time.monotonic()

    def _go_back(self, rewind: Rewind, step: int) -> None:
        """Load an older checkpoint, drop later records, and continue with the batches after the loss spike.

        Raises Diverged if the stabilizer's maximum number of rewinds is reached.
        """
        if len(self.rewinds) >= rewind.most:
            raise Diverged(
                f"{rewind.why} at step {step}, after {rewind.most} rewinds; the diverged state was not saved\n"
                "    try: a lower rate (optimizer.lr) or a longer warm-up (schedule.warmup)"
            )
        known = ranks().told(self.io.checkpoints.steps)
        target = max((s for s in known if s <= step - rewind.back), default=known[0])
        self.io.loaded = self.found = self.io.checkpoints.load(target)
        if ranks().first:
            self.io.checkpoints.forget(after=target)
        skipped = max(rewind.skip, step - target + 1)
        self.rewinds.append({"at": step, "to": target, "skipped": skipped, "why": rewind.why})
        self.start = self.progress.step = target
        self._remember(seen for seen in self.held_out if seen[0] <= target)
        self._start_files(target)
        self.progress.console.print(
            f"[yellow]rewind:[/] {rewind.why} at step {step}; back to step {target}, {skipped} steps of data skipped",
            highlight=False,
        )

    def _validate_first(self) -> None:
        """Score the untrained model, or repeat a validation that a signal interrupted."""
        self.progress.describe("validating")
        if self.found:
            weights = self.run.learner.strategy.scatter({"state_dict": dict(self.found.model)})["state_dict"]
            self.run.model.load_state_dict(weights)
        self.run.model.to(self.run.machine.device)
        if self.run.learner.scheduled is not None:
            self.run.learner.scheduled.set(self.start - 1)  # the values that the weights were trained with
        self.unscored = not self._validate("after" if self.found or not self.steps else "before", self.start)
        if self.unscored:
            raise Preempted(f"{self.stop.name} came before the first step; nothing is lost\n    try: the same command")
        self.progress.describe("training")

    def _validate(self, when: str, step: int) -> bool:
        """Score the held-out data as `when` (before or after) and log it; False if a signal interrupted it."""
        try:
            with self.run.learner.scored_weights(), self.run.learner.strategy.whole_weights():
                found = self.run.score(self.run.task.validation(), self._check_signal)
                samples = self.run.samples()
                if self.evaluation and (step == self.steps or self._every("eval_every", step)):
                    self._evaluate(step)
            if ranks().first:
                self.samples_file.write(step, samples)
        except _ValidationInterrupted:
            return False
        self.scores[when] = found
        sign = 1 if self.task_scores.better == "lower" else -1  # schedules take lower as better
        self._remember([*self.held_out, [step, found[self.task_scores.name] * sign]])
        row = {"step": step, "tokens": self.run.task.tokens(step)} | self.task_scores.row(found)
        of_step = self.evaluated if self.evaluated.get("step") == step else {}
        self.file.write(row | {column: one["value"] for column, one in of_step.get("values", {}).items()})
        self.progress.update(step, score=self.task_scores.line(found))
        return True

    def _evaluate(self, step: int) -> None:
        """Measure the model by the config's `eval` and `metric`; the items are written to items.jsonl."""
        assert self.evaluation is not None
        self.progress.describe("evaluating")
        found = self.run.evaluate(self.evaluation, self._check_signal)
        self.evaluated = {"step": step, "values": {name: one.to_json() for name, one in found.values.items()}}
        if ranks().first:
            write_items(self.folder, [{"step": step, **row} for row in found.rows])
        self.progress.describe("training")

    def _evaluate_at_end(self, step: int) -> bool:
        """Evaluate a run that a stabilizer has ended before its last step; False if a signal interrupted it."""
        if self.evaluation is None or self.evaluated.get("step") == step:
            return True
        try:
            with self.run.learner.scored_weights(), self.run.learner.strategy.whole_weights():
                self._evaluate(step)
        except _ValidationInterrupted:
            return False
        values = {column: one["value"] for column, one in self.evaluated["values"].items()}
        self.file.write({"step": step, "tokens": self.run.task.tokens(step)} | values)
        return True

    def _remember(self, held_out: Iterable[Sequence[float]]) -> None:
        """Keep the held-out scores and pass them to the schedules."""
        self.held_out = [list(seen) for seen in held_out]
        self.run.learner.scores = [score for _, score in self.held_out]

    def _check_signal(self, batch: int) -> None:
        """Interrupt a validation, between two batches, if a stop signal has come to any rank."""
        if ranks().world > 1:
            self.stop.agreed = ranks().agree(self.stop.signal is not None)
        if self.stop:
            raise _ValidationInterrupted

    def after_step(self, trainer: pl.Trainer, step: int) -> None:
        """Log, validate, save and stop as due after optimizer step number `step` (from 1).

        Raises Preempted after a stop signal, and _Paused at `until`.
        """
        last = step == self.steps
        self.trained += time.monotonic() - self.resumed_at
        self.stop.agreed = self.run.learner.stopping
        if last or self._every("log_every", step):
            row = {"step": step, "tokens": self.run.task.tokens(step)} | self.run.learner.take_metrics()
            elapsed = self.seconds + time.monotonic() - self.progress.started
            self.file.write(row | {"tokens_per_second": self.progress.rate, "seconds": elapsed})
            self.progress.update(step, loss=row["train/loss"])
        else:
            self.progress.update(step)
        if trainer.should_stop:  # a callback requested a stop: pause here, so that the run can be resumed
            self.until = step
        pause = step == self.until
        scored = last or pause or self._every("val_every", step)
        scored = scored or (self.evaluation is not None and self._every("eval_every", step))
        self.unscored = scored and not self._validate("after", step)
        if scored and not (self.unscored or last):
            pause = self._end_early(step) or pause
            self.unscored = bool(self.stopped_by) and not self._evaluate_at_end(step)
        if last or pause or self.stop or self._every("checkpoint_every", step):
            trainer.save_checkpoint(self.folder / CHECKPOINTS / str(step))
        if self.stop and (self.unscored or not last):
            raise Preempted(
                f"{self.stop.name} came at step {step}; the checkpoint is written\n"
                f"    try: ablatio train resume={shell_word(self.folder)}"
            )
        if pause and not last:
            raise _Paused
        self.resumed_at = time.monotonic()

    def _end_early(self, step: int) -> bool:
        """True if a stabilizer ends the run at this step, by the held-out scores so far.

        Scores of validations at a pause are left out, so that a run with pauses ends where one without them does.
        """
        if not self._every("val_every", step):
            return False
        scores = [score for at, score in self.held_out if at % self.settings["val_every"] == 0]
        parts = {name: part for name, part in self.run.learner.stabilizers.items() if hasattr(part, "stops")}
        self.stopped_by = next((name for name, part in parts.items() if part.stops(scores)), "")
        if self.stopped_by:
            self.until = step
            self.progress.console.print(
                f"{self.stopped_by} ends the run at step {step} of {self.steps}", highlight=False
            )
        return bool(self.stopped_by)

    def _every(self, key: str, step: int) -> bool:
        """True if `step` is a multiple of the setting `key`; 0 or null means never."""
        every = self.settings[key]
        return bool(every) and step % every == 0

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the loop: scores, times, rewinds."""
        seconds = self.seconds + time.monotonic() - self.progress.started
        return {
            "scores": self.scores,
            "seconds": seconds,
            "trained": self.trained,
            "unscored": self.unscored,
            "rewinds": self.rewinds,
            "held_out": self.held_out,
            "evaluated": self.evaluated,
            KEY: self.machines.entries,
        }

    def _flops(self, step: int) -> float:
        """FLOPs of the first `step` steps: of the tokens that the task passes through this model, with its tuning."""
        task = self.run.task
        return self.run.spec.flops(step, task.work, task.row_length)

    def _main_score(self, after: Mapping[str, float]) -> dict[str, Any]:
        """Name, value and direction of the score by which runs are compared: that of `score`, or the task's main."""
        name = self.run.config["score"]
        if name is None:
            return self.task_scores.main(after)
        if name in self.task_scores.columns:
            better = self.task_scores.better if name == f"val/{self.task_scores.name}" else _direction(name)
            return {"name": name, "value": after.get(name.removeprefix("val/")), "better": better}
        found = self.evaluated.get("values", {}).get(name, {})
        better = self.evaluation.better(name) if self.evaluation else "higher"
        return {"name": name, "value": found.get("value"), "better": better}

    def summary(self, status: str) -> dict[str, Any]:
        """Return the results for summary.json: status, scores before and after, steps, tokens, seconds, bytes, FLOPs.

        status  done, paused, preempted, diverged or failed
        """
        size, step = self.run.spec.size, self.progress.step
        seconds = self.seconds + time.monotonic() - self.progress.started
        tokens = self.run.task.tokens(step)
        after = self.scores.get("after") or {}
        return {
            "status": status,
            "run": self.io.checkpoints.run,  # that of a resumed run names the stored tokenizer in its config
            "score": self._main_score(after),
            **self.task_scores.row(after),
            **{column: one["value"] for column, one in self.evaluated.get("values", {}).items()},
            "before": self.scores.get("before"),
            "after": after or None,
            "steps": step,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "train_seconds": round(self.trained, 3),
            "tokens_per_second": round(self.progress.rate),
            "memory": self.run.machine.peak_memory(),
            "parameters": size.parameters,
            "non_embedding_parameters": size.non_embedding,
            "trainable_parameters": self.run.tuning.trainable,
            "weight_bytes": self.run.tuning.bytes,
            "peak_memory_bytes": peak_memory(),
            "train_flops": self._flops(step),
        } | {
            key: found
            for key, found in (
                ("rewinds", self.rewinds),
                ("scored_only", not self.steps),
                ("evaluation", self.evaluated),
                ("sources", self.run.task.drawn(step)),
                (KEY, self.machines.mixed),
                ("samples", self.samples_file.compared()),
                ("stopped", {"by": self.stopped_by, "planned_steps": self.steps} if self.stopped_by else None),
            )
            if found
        }


def _direction(name: str) -> str:
    """Return "lower" or "higher", the better direction of a further score of a task."""
    return "lower" if name in ("val/loss", "val/bpb") else "higher"


class _ValidationInterrupted(Exception):
    """Raised to end a validation after a stop signal."""


class _Paused(Exception):
    """Raised to end the training at `until`."""
