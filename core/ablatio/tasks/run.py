"""One run from a checked config to its folder: data, model, training, scores, and what it was made of."""

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Sampler

from ablatio import kinds
from ablatio.checkpoint import Checkpoint, Checkpoints, make_folder, write_json
from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.cache import Corpus, prepare
from ablatio.data.order import WindowOrder
from ablatio.errors import AblatioError, EnvironmentFault, Preempted, UserError
from ablatio.model.assembly import Choice, build_model
from ablatio.model.count import Size, measure
from ablatio.model.language_model import LanguageModel
from ablatio.paths import cache_root
from ablatio.tasks import provenance
from ablatio.tasks.evaluate import Score, evaluate
from ablatio.tasks.keeper import RunCheckpointIO, StopRequest
from ablatio.tasks.machine import LIGHTNING_PRECISION, Machine
from ablatio.tasks.metrics import MetricsFile
from ablatio.tasks.pretrain import Pretrain, Seeds
from ablatio.tasks.progress import RunProgress

CHECKPOINTS = "checkpoints"


@dataclass(slots=True)
class Prepared:
    """A run that is ready to start: everything made from the config, nothing trained yet."""

    config: Mapping[str, Any]
    corpus: Corpus
    tokenizer: kinds.Tokenizer
    model: LanguageModel
    task: Pretrain
    machine: Machine
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = int(self.config["data"]["length"] or self.config["model"]["max_len"])

    @property
    def tokens_per_step(self) -> int:
        train = self.config["train"]
        return int(train["batch_size"] * train["accumulate"] * self.length)

    def training(self, start: int) -> "DataLoader[dict[str, torch.Tensor]]":
        """Batches from number `start` on; the position in the data is this one integer."""
        train, workers = self.config["train"], self.config["trainer"]["workers"]
        order = WindowOrder(len(self.corpus.train), self.length, self.task.seeds.data)
        batches = TrainBatches(
            self.corpus.train,
            order,
            train["batch_size"],
            eos=self.tokenizer.eos,
            document_mask=self.config["data"]["document_mask"],
        )
        sampler = _From(start, train["steps"] * train["accumulate"])
        return DataLoader(
            batches, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )

    def validation(self, length: int | None = None, tokens: int | None = None) -> ValidationBatches:
        """The fixed held-out windows; rows of `length` tokens, about 1024 of them a batch at least."""
        length = length or self.length
        cap = tokens if tokens is not None else self.config["data"]["val_tokens"]
        return ValidationBatches(
            self.corpus.validation,
            length,
            max(1, 4096 // length),
            eos=self.tokenizer.eos,
            document_mask=self.config["data"]["document_mask"],
            val_tokens=cap or 0,
        )

    def score(self, batches: ValidationBatches, between: Callable[[int], None] = lambda n: None) -> Score:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.machine.precision == "bf16"):
            return evaluate(self.model, self.task.objective, iter(batches), self.tokenizer.token_bytes(), device, between)


class _From(Sampler[int]):
    """start ... total - 1.  Its length is the total: Lightning counts the batches of the whole run."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


def build_data(config: Mapping[str, Any]) -> tuple[Corpus, kinds.Tokenizer]:
    """The token cache and the (trained) tokenizer of a config."""
    source, tokens = Choice.of(config["source"]), Choice.of(config["tokenizer"])
    tokenizer = kinds.tokenizers.build(tokens.name, tokens.knobs)
    digest = kinds.tokenizers[tokens.name].digest
    key = json.dumps([tokens.name, digest, dict(tokens.knobs)], sort_keys=True)
    corpus = prepare(
        kinds.sources.build(source.name, source.knobs), tokenizer, key, cache_root(), config["data"]["val_fraction"]
    )
    return corpus, tokenizer


def prepare_run(config: Mapping[str, Any]) -> Prepared:
    """Machine, data, model and task of a checked config."""
    machine = Machine.choose(config["trainer"])
    machine.prepare()
    corpus, tokenizer = build_data(config)
    seeds = Seeds(config)
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos, seeds.init)
    if config["trainer"]["compile"]:
        for layer in model.model.layers:
            layer.compile()
    task = Pretrain(config, model, tokenizer.vocab_size, tokenizer.eos, seeds)
    return Prepared(config, corpus, tokenizer, model, task, machine)


def new_folder(config: Mapping[str, Any], name: str | None = None) -> Path:
    """A fresh run folder under `out`; an existing one with a run in it is never overwritten."""
    root = Path(config["out"]).expanduser()
    name = name or config["name"] or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = root / name
    if (folder / "config.json").exists():
        if config["name"]:
            raise UserError(
                f"{folder} holds a run already\n    try: ablatio train resume={folder}, or another name={name}-2"
            )
        return new_folder(config, f"{name}_{time.time_ns() % 1000:03d}")
    return make_folder(folder)


def train(
    config: Mapping[str, Any], public: Mapping[str, Any], folder: Path, console: Console, *, resume: bool = False
) -> dict[str, Any]:
    """Train in `folder` and return its summary.  `public` is the config as it may be written down."""
    _quiet_libraries()
    run = prepare_run(config)
    checkpoints = Checkpoints(folder / CHECKPOINTS, config["train"]["keep"], run=run_id(config))
    found = checkpoints.load() if resume and checkpoints.latest() is not None else None
    for sentence in found.skipped if found else ():
        console.print(f"[yellow]checkpoint left out:[/] {sentence}", highlight=False)
    if not found:
        write_json(folder / "config.json", public)
        write_json(folder / "manifest.json", _manifest(run))
    session = _Session(run, folder, console, checkpoints, found)
    try:
        return session.train()
    except AblatioError as error:
        status = {4: "diverged", 75: "preempted"}.get(error.exit_code, "failed")
        write_json(folder / "summary.json", session.summary(status) | {"error": str(error)})
        raise


def _quiet_libraries() -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Lightning's advice on workers and loggers, and that our loader cannot be resumed (it can: by its first number).
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def run_id(config: Mapping[str, Any]) -> str:
    """Names the run in its checkpoints: a hash of the settings that make its numbers."""
    volatile = ("out", "name", "trainer", "sweep")
    return hashlib.sha256(
        json.dumps({k: v for k, v in config.items() if k not in volatile}, sort_keys=True).encode()
    ).hexdigest()[:16]


def _size(run: Prepared) -> Size:
    return measure(run.config, run.tokenizer.vocab_size)


def _manifest(run: Prepared) -> dict[str, Any]:
    size, seeds = _size(run), run.task.seeds
    return {
        "run": run_id(run.config),
        "versions": provenance.versions(),
        "code": provenance.code(run.config),
        "data": {"fingerprint": run.corpus.fingerprint, "key": run.corpus.key, **run.corpus.counts},
        "seeds": {"init": seeds.init, "data": seeds.data, "dropout": seeds.dropout},
        "size": asdict(size) | {"non_embedding": size.non_embedding, "vocab_size": run.tokenizer.vocab_size},
        "machine": asdict(run.machine),
    }


class _Session:
    """One stretch of training: from the start or from a checkpoint to the end, or to a signal."""

    def __init__(
        self, run: Prepared, folder: Path, console: Console, checkpoints: Checkpoints, found: Checkpoint | None
    ) -> None:
        self.run, self.folder, self.console, self.found = run, folder, console, found
        self.io, self.stop = RunCheckpointIO(checkpoints), StopRequest()
        self.io.loaded = found
        self.settings = run.config["train"]
        self.steps, self.start = int(self.settings["steps"]), found.step if found else 0
        extra = [m for part in run.task.stabilizers for m in part.metrics]
        self.file = MetricsFile(folder / "metrics.csv", extra)
        self.scores: dict[str, Any] = {}
        self.seconds = 0.0
        if found:
            self.scores, self.seconds = dict(found.state["scores"]), float(found.state["seconds"])

    def train(self) -> dict[str, Any]:
        run, config = self.run, self.run.config
        self.progress = RunProgress(
            self.console, self.steps, run.tokens_per_step, self.start, shown=config["trainer"]["progress"]
        )
        self.file.start(self.start if self.found else None)
        with ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            stack.enter_context(self.progress)
            trainer = pl.Trainer(
                max_steps=self.steps,
                max_epochs=-1,
                accumulate_grad_batches=self.settings["accumulate"],
                accelerator="gpu" if run.machine.device == "cuda" else "cpu",
                devices=1,
                precision=LIGHTNING_PRECISION[run.machine.precision],  # type: ignore[arg-type]
                callbacks=[_Keep(self)],
                plugins=[self.io],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=0,
                use_distributed_sampler=False,
                default_root_dir=str(self.folder),
            )
            if not self.found:
                self._before()
            if self.start < self.steps:
                path = str(self.folder / CHECKPOINTS / str(self.start)) if self.found else None
                trainer.fit(run.task, run.training(self.start * self.settings["accumulate"]), ckpt_path=path)
        summary = self.summary("done")
        write_json(self.folder / "summary.json", summary)
        return summary

    def _before(self) -> None:
        self.progress.describe("validating")
        self.run.model.to(self.run.machine.device)
        self._note("before", 0)
        self.progress.describe("training")

    def _note(self, when: str, step: int) -> None:
        score = self.run.score(self.run.validation(), self._between)
        self.scores[when] = asdict(score)
        self.file.write({"step": step, "tokens": step * self.run.tokens_per_step} | score.metrics())
        self.progress.update(step, bpb=score.bpb)

    def _between(self, batch: int) -> None:
        if self.stop and not self.found and "before" not in self.scores:
            raise Preempted(f"{self.stop.name} came before the first step; there is nothing to continue")

    def after_step(self, trainer: pl.Trainer, step: int) -> None:
        """What follows optimizer step number `step` (from 1): log, validate, save, stop."""
        task, last = self.run.task, step == self.steps
        if last or self._every("log_every", step):
            row = {"step": step, "tokens": step * self.run.tokens_per_step} | task.take_metrics()
            elapsed = self.seconds + time.monotonic() - self.progress.started
            self.file.write(row | {"tokens_per_second": self.progress.rate, "seconds": elapsed})
            self.progress.update(step, loss=row["train/loss"])
        else:
            self.progress.update(step)
        if last or (self._every("val_every", step) and not self.stop):
            self._note("after", step)
        if last or self.stop or self._every("checkpoint_every", step):
            trainer.save_checkpoint(self.folder / CHECKPOINTS / str(step))
        if self.stop and not last:
            raise Preempted(
                f"{self.stop.name} came at step {step}; the checkpoint is written\n"
                f"    try: ablatio train resume={self.folder}"
            )

    def _every(self, key: str, step: int) -> bool:
        every = self.settings[key]
        return bool(every) and step % every == 0

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the task's own state."""
        return {"scores": self.scores, "seconds": self.seconds + time.monotonic() - self.progress.started}

    def summary(self, status: str) -> dict[str, Any]:
        run, size = self.run, _size(self.run)
        progress = getattr(self, "progress", None)
        step = progress.step if progress else self.start
        seconds = self.seconds + (time.monotonic() - progress.started if progress else 0.0)
        tokens = step * run.tokens_per_step
        after = self.scores.get("after") or {}
        return {
            "status": status,
            "val/loss": after.get("loss"),
            "val/bpb": after.get("bpb"),
            "before": self.scores.get("before"),
            "after": after or None,
            "steps": step,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(progress.rate) if progress else None,
            "parameters": size.parameters,
            "non_embedding_parameters": size.non_embedding,
            "train_flops": size.train_flops_per_token * tokens,
        }


class _Keep(pl.Callback):
    """Calls the session after each optimizer step (not after each batch: a step may take several)."""

    def __init__(self, session: _Session) -> None:
        self.session, self.step = session, session.start

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.session.stop.take()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.session.after_step(trainer, self.step)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.session.extra_state()


def read_run(folder: Path) -> dict[str, Any]:
    """The config of a run folder, with values from the environment filled in, checked like any other."""
    from omegaconf import OmegaConf

    from ablatio.config import cast, check
    from ablatio.errors import ConfigError
    from ablatio.plugins import load

    load()
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: it has no config.json\n    try: ls {folder.parent}") from None
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}") from None
    config: Any = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    if problems := check(config):
        raise ConfigError(problems)
    return cast(config)
