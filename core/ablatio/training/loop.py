"""One stretch of training: log, validate, save, stop."""

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
from ablatio.registry.kinds import Logger
from ablatio.storage.checkpoints import Checkpoint, Checkpoints, write_json
from ablatio.training.checkpoint_io import RunCheckpointIO, StopRequest
from ablatio.training.device import LIGHTNING_PRECISION
from ablatio.training.lightning_trainer import make_trainer
from ablatio.training.loggers import Logs
from ablatio.training.metrics_csv import MetricsFile
from ablatio.training.prepare import PreparedRun
from ablatio.training.progress_bar import RunProgress
from ablatio.training.run_folder import CHECKPOINTS
from ablatio.training.samples_file import SamplesFile
from ablatio.training.task_scores import TaskScores


class TrainingLoop:
    """One stretch of training: from the start or from a checkpoint to the end, or to a signal."""

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
    ) -> None:
        self.run, self.folder, self.found, self.callbacks = run, folder, found, callbacks
        self.io, self.stop = RunCheckpointIO(checkpoints), StopRequest()
        self.io.loaded = found
        self.settings = run.config["train"]
        self.steps, self.start = int(self.settings["steps"]), found.step if found else 0
        self.until = min(until or self.steps, self.steps)
        extra = [m for entry, _ in chosen(run.config) for m in entry.facts.get("metrics", ())]
        self.told = TaskScores.of(run.config)
        self.file = Logs(MetricsFile(folder / "metrics.csv", [*self.told.columns, *extra]), loggers, console)
        self.answers = SamplesFile(folder / "samples.jsonl")
        self.scores: dict[str, Any] = {}
        self.held_out: list[list[float]] = []  # step and score of each validation: schedules may watch
        self.rewinds: list[
            dict[str, Any]
        ] = []  # each with the step of the spike, the step gone back to, batches skipped
        self.seconds = 0.0
        self.trained = self.resumed_at = 0.0  # seconds of steps alone, and when the last stretch of them began
        self.unscored = False  # a signal came before the validation of the last step was done
        if found:
            self.scores, self.seconds = dict(found.state["scores"]), float(found.state["seconds"])
            self.unscored, self.rewinds = bool(found.state["unscored"]), list(found.state["rewinds"])
            self._remember(found.state.get("held_out", ()))  # older runs have none
            self.trained = float(found.state.get("trained", 0.0))
        shown = run.config["trainer"]["progress"]
        self.progress = RunProgress(console, self.steps, run.task.tokens, self.start, shown=shown)

    def train(self) -> dict[str, Any]:
        run = self.run
        self._start_files(self.start if self.found else None)
        with ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.progress)
            if not self.found or self.unscored:
                self._validate_first()
            while self.start < self.until:
                trainer = self._trainer()
                path = str(self.folder / CHECKPOINTS / str(self.start)) if self.found else None
                skipped = sum(r["skipped"] for r in self.rewinds) * self.settings["accumulate"]
                batches = run.training(self.start * self.settings["accumulate"], skipped)
                try:
                    trainer.fit(run.learner, batches, ckpt_path=path)
                    break
                except Rewind as asked:
                    self._go_back(asked, trainer.global_step)
                except _Paused:
                    break
        whole = self.until == self.steps
        summary = self.summary("done" if whole else "paused")
        write_json(self.folder / "summary.json", summary)
        self.file.finish("done" if whole else "preempted")
        return summary

    def _start_files(self, after_step: int | None) -> None:
        self.file.start(after_step)
        self.answers.start(after_step)

    def _trainer(self) -> pl.Trainer:
        machine = self.run.machine
        return make_trainer(
            max_steps=self.steps,
            max_epochs=-1,
            accumulate_grad_batches=self.settings["accumulate"],
            accelerator="gpu" if machine.device == "cuda" else "cpu",
            precision=LIGHTNING_PRECISION[machine.precision],
            callbacks=[*self.callbacks, _Keep(self)],  # theirs first: what they ask for is done after this step
            plugins=[self.io],
            default_root_dir=str(self.folder),
        )

    def _go_back(self, asked: Rewind, step: int) -> None:
        """Load an older checkpoint, forget what came later, and go on behind the batches of the spike."""
        if len(self.rewinds) >= asked.most:
            raise Diverged(
                f"{asked.why} at step {step}, after {asked.most} rewinds; nothing of it was saved\n"
                "    try: a lower rate (optimizer.lr) or a longer warm-up (schedule.warmup)"
            )
        known = self.io.checkpoints.steps()
        target = max((s for s in known if s <= step - asked.back), default=known[0])
        self.io.loaded = self.found = self.io.checkpoints.load(target)
        self.io.checkpoints.forget(after=target)
        self.rewinds.append({"at": step, "to": target, "skipped": max(asked.skip, step - target + 1), "why": asked.why})
        self.start = self.progress.step = target
        self._remember(seen for seen in self.held_out if seen[0] <= target)
        self._start_files(target)
        self.progress.console.print(
            f"[yellow]rewind:[/] {asked.why} at step {step}; back to step {target}, "
            f"{self.rewinds[-1]['skipped']} steps' batches left out",
            highlight=False,
        )

    def _validate_first(self) -> None:
        """The score of the untrained model, or the one that a signal cut off at the step from which we continue."""
        self.progress.describe("validating")
        if self.found:
            self.run.model.load_state_dict(self.found.model)
        self.run.model.to(self.run.machine.device)
        self.unscored = not self._validate("after" if self.found else "before", self.start)
        if self.unscored:
            raise Preempted(f"{self.stop.name} came before the first step; nothing is lost\n    try: the same command")
        self.progress.describe("training")

    def _validate(self, when: str, step: int) -> bool:
        """Score the held-out text; False when a signal came first."""
        try:
            with self.run.learner.scored_weights():
                found = self.run.score(self.run.task.validation(), self._between)
                self.answers.write(step, self.run.samples())
        except _SignalCame:
            return False
        self.scores[when] = found
        self._remember([*self.held_out, [step, found[self.told.name] * (1 if self.told.better == "lower" else -1)]])
        self.file.write({"step": step, "tokens": self.run.task.tokens(step)} | self.told.row(found))
        self.progress.update(step, score=self.told.line(found))
        return True

    def _remember(self, held_out: Iterable[Sequence[float]]) -> None:
        self.held_out = [list(seen) for seen in held_out]
        self.run.learner.scores = [score for _, score in self.held_out]

    def _between(self, batch: int) -> None:
        if self.stop:
            raise _SignalCame

    def after_step(self, trainer: pl.Trainer, step: int) -> None:
        """What follows optimizer step number `step` (from 1): log, validate, save, stop."""
        last = step == self.steps
        self.trained += time.monotonic() - self.resumed_at
        if last or self._every("log_every", step):
            row = {"step": step, "tokens": self.run.task.tokens(step)} | self.run.learner.take_metrics()
            elapsed = self.seconds + time.monotonic() - self.progress.started
            self.file.write(row | {"tokens_per_second": self.progress.rate, "seconds": elapsed})
            self.progress.update(step, loss=row["train/loss"])
        else:
            self.progress.update(step)
        if trainer.should_stop:  # a callback asks to end here: the run pauses, and resume goes on
            self.until = step
        pause = step == self.until
        self.unscored = (last or pause or self._every("val_every", step)) and not self._validate("after", step)
        if last or pause or self.stop or self._every("checkpoint_every", step):
            trainer.save_checkpoint(self.folder / CHECKPOINTS / str(step))
        if self.stop and (self.unscored or not last):
            raise Preempted(
                f"{self.stop.name} came at step {step}; the checkpoint is written\n"
                f"    try: ablatio train resume={self.folder}"
            )
        if pause and not last:
            raise _Paused
        self.resumed_at = time.monotonic()

    def _every(self, key: str, step: int) -> bool:
        every = self.settings[key]
        return bool(every) and step % every == 0

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the task's own state."""
        seconds = self.seconds + time.monotonic() - self.progress.started
        return {
            "scores": self.scores,
            "seconds": seconds,
            "trained": self.trained,
            "unscored": self.unscored,
            "rewinds": self.rewinds,
            "held_out": self.held_out,
        }

    def _flops(self, step: int) -> float:
        """Of all steps: what this task passes through this model, as it is tuned."""
        task = self.run.task
        return self.run.spec.cost(task.row_length).of(task.work(step))

    def summary(self, status: str) -> dict[str, Any]:
        size, step = self.run.spec.size, self.progress.step
        seconds = self.seconds + time.monotonic() - self.progress.started
        tokens = self.run.task.tokens(step)
        after = self.scores.get("after") or {}
        return {
            "status": status,
            "score": self.told.main(after),
            **self.told.row(after),
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
        } | {key: found for key, found in (("rewinds", self.rewinds), ("samples", self.answers.compared())) if found}


class _SignalCame(Exception):
    """Ends a validation early."""


class _Paused(Exception):
    """Ends the training at `until`."""


class _Keep(pl.Callback):
    """Calls the session after each optimizer step (not after each batch: a step may take several)."""

    def __init__(self, session: TrainingLoop) -> None:
        self.session, self.step = session, session.start

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        session = self.session
        session.stop.take()
        # Who may go back needs a place to go to, and must know after a crash what it has left out.
        if session.rewinds or (session.run.learner.rewinds and not session.found):
            trainer.save_checkpoint(session.folder / CHECKPOINTS / str(session.start))
        session.resumed_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.session.after_step(trainer, self.step)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.session.extra_state()
