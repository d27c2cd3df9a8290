"""Speed and peak memory of policy methods on the CPU: a step against trl's, generation against transformers'.

    python benchmarks/policies.py [--only generation grpo rloo] [--width 64 128] [--turns 9] [--json FILE]

Both sides use one Llama with the same weights, one thread, and the CPU time of the process.  Each contender has its own
process and they take turns (A B A B ...); a ratio is the median over the turns of theirs / ours.  Peak memory is
relative to the process's memory after the imports and a tiny run of the same kind.

generation: prompts of one length, sampling at temperature 1 from the whole vocabulary, the same number of new tokens in
            each row without an end token; both sides return the log-probability of each token, as policy methods need.
grpo, rloo: a whole step of each side's own training loop: 8 answers to each of 2 prompts, a reward in Python,
            log-probabilities under the frozen reference, loss, backward, clipping, AdamW; no end token.
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from train_step import status_kb

from ablatio import rewards
from ablatio.model.rl.answers import Answer
from ablatio.training.device import Machine

PARTS = ("norm=rmsnorm", "activation=swiglu", "position=rope", "tokenizer=bytes", "trainer.threads=1",
         "trainer.device=cpu", "trainer.precision=32", "trainer.progress=false", "schedule=constant",
         "optimizer.weight_decay=0")  # fmt: skip
VOCABULARY, GROUP, WARM_UP = 2048, 8, 2
COLUMNS = ("ours", "theirs", "ratio", "our_mb", "their_mb")
KINDS = ["generation", "grpo", "rloo"]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """One workload.

    prompts, group   prompts in a batch, and answers to each
    asked, new       tokens of a prompt and of an answer
    width, layers    size of the model
    """

    prompts: int
    group: int
    asked: int
    new: int
    width: int
    layers: int


@rewards.register("even_ids", paper="arXiv:1707.06347")
def even_ids(answer: Answer) -> float:
    """Share of even ids: a reward of negligible cost."""
    return share(answer.ids)


def share(ids: Any) -> float:
    """Share of even numbers in `ids`."""
    return sum(1 - int(i) % 2 for i in ids) / max(1, len(ids))


def settings(shape: Shape) -> list[str]:
    """Overrides that configure our model."""
    sizes = {"d_model": shape.width, "n_layers": shape.layers, "n_heads": 4, "vocab_size": VOCABULARY, "tied": "false",
             "max_len": shape.asked + shape.new}  # fmt: skip
    return [*PARTS, *(f"model.{name}={value}" for name, value in sizes.items())]


def own_model(shape: Shape) -> tuple[Any, Any]:
    """Build our model: (model, its family in transformers)."""
    from ablatio.config.compose import compose_run
    from ablatio.interop.families.decoders import Llama
    from ablatio.model.build import build_model

    config = compose_run(settings(shape)).config
    return build_model(config, VOCABULARY), Llama(config, VOCABULARY)


def their_model(shape: Shape) -> Any:
    """transformers' Llama with the weights of our model; asserts that the logits agree."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours, family = own_model(shape)
    theirs = LlamaForCausalLM(LlamaConfig(**family.config_json()))
    theirs.load_state_dict(family.to_native(ours.state_dict()), strict=False)
    row = torch.arange(1, 33)[None]
    with torch.no_grad():
        gap = float((ours(row) - theirs(row).logits).abs().max())
    assert gap < 1e-3, f"the models differ: their logits by up to {gap}"
    return theirs


def own_generation(shape: Shape, tick: Tick) -> None:
    """Our generation, calling `tick` after each batch of answers."""
    from ablatio.model.decoding.rollout import sample_rollouts, streams

    model, _ = own_model(shape)
    rows = prompts_of(shape).tolist()
    while True:
        draws = streams(1, 0, shape.prompts * shape.group, shape.new)
        found = sample_rollouts(model, rows, draws, stop=None, new_tokens=shape.new, group=shape.group)
        assert found.logps.shape == (shape.prompts * shape.group, shape.new)
        tick()


def their_generation(shape: Shape, tick: Tick) -> None:
    """transformers' `generate` with log-probabilities, calling `tick` after each batch of answers."""
    model, rows = their_model(shape).eval(), prompts_of(shape).repeat_interleave(shape.group, 0)
    length = {"max_new_tokens": shape.new, "min_new_tokens": shape.new}
    drawing = {"do_sample": True, "top_k": 0, "pad_token_id": 0}
    while True:
        with torch.no_grad():
            found = model.generate(
                rows, attention_mask=torch.ones_like(rows), **length, **drawing, return_dict_in_generate=True,
                output_scores=True,
            )  # fmt: skip
            logps = torch.stack(found.scores, 1).log_softmax(-1)
            logps = logps.gather(2, found.sequences[:, shape.asked :, None])
        assert logps.shape == (shape.prompts * shape.group, shape.new, 1)
        tick()


def prompts_of(shape: Shape) -> torch.Tensor:
    """Random prompts: (prompts, asked)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCABULARY, (shape.prompts, shape.asked), generator=generator)


def own_training(method: str, shape: Shape, tick: Tick) -> None:
    """Our training loop (Lightning, the task, the optimizer) without validation, calling `tick` after each step."""
    from ablatio.config.compose import compose_run
    from ablatio.storage.checkpoints import Checkpoints
    from ablatio.training.loop import TrainingLoop
    from ablatio.training.prepare import prepare_run
    from ablatio.training.run import quiet_libraries
    from ablatio.training.run_spec import RunSpec

    quiet_libraries()
    knobs = {"group": shape.group, "beta": 0.04, "clip": 0.2}
    run = prepare_run(RunSpec(compose_run([
        *settings(shape), "task=policy", f"alignment={method}", *(f"alignment.{k}={v}" for k, v in knobs.items()),
        "reward=even_ids", f"task.prompt_tokens={shape.asked}", f"task.answer_tokens={shape.new}",
        f"train.batch_size={shape.prompts * shape.group}", "train.steps=1000000", "train.val_every=null",
        "train.checkpoint_every=null", "train.log_every=1000000", "optimizer.lr=1e-6", "data.val_tokens=1024",
    ]).config))  # fmt: skip
    task: Any = run.task
    task.stop = task.asking.stop = -1
    run.begin()
    folder = Path(tempfile.mkdtemp())
    session = TrainingLoop(run, folder, Console(quiet=True), Checkpoints(folder / "checkpoints"), None, {})
    session._validate = lambda when, step: True  # type: ignore[method-assign]
    after = session.after_step

    def timed(trainer: Any, step: int) -> None:
        assert set(task.rollout.mask.sum(1).int().tolist()) == {shape.new}
        after(trainer, step)
        tick()

    session.after_step = timed  # type: ignore[method-assign]
    session.train()


def their_training(method: str, shape: Shape, tick: Tick) -> None:
    """trl's trainer for the method, calling `tick` after each step."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    words = {f"w{i}": i for i in range(VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w0", eos_token="w1", padding_side="left")
    rows = torch.randint(2, VOCABULARY, (512, shape.asked), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_list([{"prompt": " ".join(f"w{i}" for i in row)} for row in rows])

    class Timed(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            tick()

    def reward(prompts: list[str], completion_ids: list[list[int]], **more: Any) -> list[float]:
        assert {len(p.split()) for p in prompts} == {shape.asked} and {len(c) for c in completion_ids} == {shape.new}
        return [share(ids) for ids in completion_ids]

    own = {"loss_type": "grpo"} if method == "grpo" else {}
    config = getattr(trl, f"{method.upper()}Config")(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False,
        per_device_train_batch_size=shape.prompts * shape.group, num_generations=shape.group,
        max_completion_length=shape.new, beta=0.04, epsilon=0.2, learning_rate=1e-6, lr_scheduler_type="constant",
        max_steps=1_000_000, logging_steps=1_000_000, save_strategy="no", report_to="none", disable_tqdm=True,
        gradient_checkpointing=False, top_k=0, max_grad_norm=1.0,
        generation_kwargs={"min_new_tokens": shape.new}, **own,
    )  # fmt: skip
    folder = tempfile.mkdtemp()  # trl loads the reference from the folder that the model was loaded from
    their_model(shape).save_pretrained(folder)
    trainer = getattr(trl, f"{method.upper()}Trainer")(
        model=LlamaForCausalLM.from_pretrained(folder), args=config, train_dataset=data, processing_class=tokenizer,
        callbacks=[Timed()], reward_funcs=reward,
    )  # fmt: skip
    trainer.train()


def own_grpo(shape: Shape, tick: Tick) -> None:
    """Our GRPO."""
    own_training("grpo", shape, tick)


def their_grpo(shape: Shape, tick: Tick) -> None:
    """trl's GRPOTrainer."""
    their_training("grpo", shape, tick)


def own_rloo(shape: Shape, tick: Tick) -> None:
    """Our RLOO."""
    own_training("rloo", shape, tick)


def their_rloo(shape: Shape, tick: Tick) -> None:
    """trl's RLOOTrainer."""
    their_training("rloo", shape, tick)


# Each contender runs its loop in its own process, and waits after each step for the next request.


def contend(work: Callable[[Shape, Tick], None], shape: Shape, pipe: Connection) -> None:
    """Answer each request by (CPU seconds of a step, peak MB relative to the imports and a tiny run)."""
    Machine("cpu", "32", 1).prepare(shape.width)  # the matrix products of our runs, for all contenders
    warnings.simplefilter("ignore")
    with contextlib.suppress(_Enough):
        work(Shape(1, 2, 4, 4, 16, 1), _stop)
    gc.collect()
    before = status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    start = 0.0

    def tick() -> None:
        nonlocal start
        pipe.send((time.process_time() - start, (status_kb("VmHWM") - before) / 1024))
        if not pipe.recv():
            raise _Enough
        start = time.process_time()

    with contextlib.suppress(_Enough):
        work(shape, tick)


class _Enough(BaseException):
    """Raised in `tick` to end a training loop."""


def _stop() -> None:
    raise _Enough


class Contender:
    """A contender in its own process: CPU seconds of its steps, and peak memory in MB."""

    def __init__(self, work: Callable[[Shape, Tick], None], shape: Shape) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=contend, args=(work, shape, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.seconds: list[float] = []
        self.peak = 0.0
        self.pipe.recv()  # result of the first step, which is not counted

    def step(self) -> None:
        self.pipe.send(True)
        seconds, self.peak = self.pipe.recv()
        self.seconds.append(seconds)

    def stop(self) -> None:
        self.pipe.send(False)
        self.process.join()


def compare(ours: Callable[..., None], theirs: Callable[..., None], shape: Shape, turns: int) -> dict[str, float]:
    """Measure both in turns; return tokens per second, the ratio theirs / ours of the times, and peak MB."""
    pair = [Contender(work, shape) for work in (ours, theirs)]
    for turn in range(WARM_UP + turns):
        for contender in pair:
            contender.step()
            if turn < WARM_UP:
                contender.seconds.clear()
    for contender in pair:
        contender.stop()
    tokens = shape.prompts * shape.group * shape.new
    ratio = statistics.median(b / a for a, b in zip(pair[0].seconds, pair[1].seconds, strict=True))
    speeds = [tokens / statistics.median(c.seconds) for c in pair]
    return dict(zip(COLUMNS, (*speeds, ratio, *(c.peak for c in pair)), strict=True))


def main() -> None:
    """Measure the chosen comparisons, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument(
        "--width", type=int, nargs="+", default=[64, 128], help="d_model; a model has width / 32 layers"
    )
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    table = Table("", "ours, tokens/s", "theirs", "ratio", "peak MB: ours", "theirs", title="one thread, CPU time")
    rows = []
    for width in args.width:
        sizes = args.prompt, args.new, width, width // 32
        work = {
            "generation": [("8 prompts", own_generation, their_generation, Shape(8, 1, *sizes)),
                           ("8 answers to one prompt", own_generation, their_generation, Shape(1, 8, *sizes))],
            "grpo": [("GRPO step, 2 x 8 answers", own_grpo, their_grpo, Shape(2, GROUP, *sizes))],
            "rloo": [("RLOO step, 2 x 8 answers", own_rloo, their_rloo, Shape(2, GROUP, *sizes))],
        }  # fmt: skip
        for label, ours, theirs, shape in (row for name in args.only for row in work[name]):
            found = compare(ours, theirs, shape, args.turns)
            numbers = f"{found['ours']:,.0f}", f"{found['theirs']:,.0f}", f"{found['ratio']:.2f}"
            table.add_row(f"width {width}: {label}", *numbers, f"{found['our_mb']:.0f}", f"{found['their_mb']:.0f}")
            rows.append({"width": width, "what": label, **found})
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
