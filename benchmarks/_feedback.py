"""Contenders of preferences.py: training steps of ours and of trl on the same data and the same Llama."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ablatio.config import schema as run_config
from ablatio.data.order import RowPlan
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.training.initial_weights import start_model
from ablatio.training.task_context import TaskContext

Step = Callable[[], float]
LETTERS = "abcdefghijklmnopqrstuvwxyz "
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rope", "attention": "mha", "init": "gpt2"}


@dataclass(frozen=True)
class Shape:
    """One workload.

    prompt, answer                mean numbers of tokens
    pairs                         pairs in a batch
    width, layers, vocab          size of the model
    batches                       batches in the data
    """

    prompt: int
    answer: int
    pairs: int = 4
    width: int = 256
    layers: int = 4
    vocab: int = 4096
    batches: int = 40


TINY = Shape(8, 8, pairs=2, width=32, layers=1, vocab=512, batches=3)


def write(shape: Shape, path: Path) -> None:
    """Write pairs of random letters; lengths are uniform between 0.5 and 1.5 times the mean."""
    generator = random.Random(0)

    def text(mean: int) -> str:
        return "".join(generator.choices(LETTERS, k=generator.randint(mean // 2, mean + mean // 2)))

    lines = (
        {"prompt": f"{i} {text(shape.prompt)}", "chosen": text(shape.answer), "rejected": text(shape.answer)}
        for i in range(shape.pairs * shape.batches + 8)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(name: str, shape: Shape, folder: Path) -> tuple[Any, Any]:
    """Build our task and model on the data, with the reference's log-probabilities computed: (task, model)."""
    os.environ["ABLATIO_CACHE"] = str(folder / "cache")
    write(shape, folder / "pairs.jsonl")
    config = run_config.defaults()
    longest = 2 * (shape.prompt + shape.answer) + 64
    sizes = {"d_model": shape.width, "n_layers": shape.layers, "n_heads": max(1, shape.width // 64), "bias": False}
    config["model"] |= {**sizes, "max_len": longest, "vocab_size": shape.vocab, "tied": False, "dropout": 0.0}
    config["data"] |= {"val_fraction": 8 / (shape.pairs * shape.batches + 8)}
    config["train"] |= {"batch_size": shape.pairs}
    parts = {**LLAMA, "task": name, "source": "feedback", "tokenizer": "bytes", "alignment": "dpo", "template": "plain"}
    parts |= {"placement": "pre", "mlp": "dense", "block": "sequential", "architecture": "causal", "objective": "lm"}
    for kind, option in parts.items():
        config[kind] = {"name": option, **REGISTRIES[kind][option].defaults}
    config["source"]["path"] = str(folder / "pairs.jsonl")
    if name == "sft":
        config["task"]["packing"] = False  # one conversation in a row, the default of trl's trainer
    setup = TaskContext(config, RowPlan(shape.pairs))
    task = kinds.tasks.build(name, {k: v for k, v in config["task"].items() if k != "name"}, setup=setup)
    model, _ = start_model(config, task.tokenizer, setup.seeds.init)
    for step in ("attach", "prepare"):
        getattr(task, step, lambda model: None)(model)
    return task, model


def moved_by(model: nn.Module, backward: Callable[[], float]) -> Step:
    """Make a step of `backward`, clipping to norm 1 and fused AdamW; it returns the loss that `backward` returns."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> float:
        loss = backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def ours(name: str, shape: Shape) -> Step:
    """Our step: collate the next batch, the task's loss, backward, update."""
    with tempfile.TemporaryDirectory() as folder:
        task, model = start(name, shape, Path(folder))
    numbers, generator, training = iter(range(10**9)), torch.Generator(), task.training

    def backward() -> float:
        total, weight, _ = task.loss(model, task.example(training[next(numbers)], generator))
        loss = total / weight
        loss.backward()
        return float(loss.detach())

    return moved_by(model.train(), backward)


def theirs(name: str, shape: Shape, more: Mapping[str, Any]) -> Step:
    """trl's step: collator and `training_step` of its trainer, on the same examples in the same order."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        trainer = _trainer(name, shape, more, Path(folder))
        rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    batches = _endless(rows, shape.pairs)
    trainer.current_gradient_accumulation_steps = 1

    def backward() -> float:
        inputs = trainer.data_collator(next(batches))
        return float(trainer.training_step(trainer.model, inputs))

    return moved_by(trainer.model, backward)


def _trainer(name: str, shape: Shape, more: Mapping[str, Any], folder: Path) -> Any:
    """Make trl's trainer with a copy of our model, our examples, and the config settings `more`."""
    import trl
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from ablatio.interop.families.decoders import Llama

    task, model = start(name, shape, folder)
    family = Llama(task.setup.config, shape.vocab)
    config = LlamaConfig(**family.config_json() | {"pad_token_id": shape.vocab - 1, "num_labels": 1})
    copy: Any = (LlamaForSequenceClassification if name == "reward" else LlamaForCausalLM)(config)
    weights = family.to_native({k: w for k, w in model.state_dict().items() if not k.startswith("reward_head.")})
    if name == "reward":
        weights = {k: w for k, w in weights.items() if k.startswith("model.")}
        weights["score.weight"] = model.reward_head.weight[None]
    missing, unexpected = copy.load_state_dict(weights, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    copy.save_pretrained(folder / "model")
    kind = {"preference": "DPO", "sft": "SFT", "reward": "Reward"}[name]
    given = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}
    given |= {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"}, "disable_tqdm": True}
    args = getattr(trl, f"{kind}Config")(**given, per_device_train_batch_size=shape.pairs, **more)
    data = Dataset.from_list([_row(task, name, i) for i in _order(task, name, shape)])
    made = getattr(trl, f"{kind}Trainer")
    return made(
        str(folder / "model"), args=args, train_dataset=data, processing_class=_reader(shape.vocab, _end(task, name))
    )


def _order(task: Any, name: str, shape: Shape) -> list[int]:
    """Indices of the examples in the order of our run."""
    rows = task.rows if name == "sft" else task.training.rows
    return [rows.row(i)[0] for i in range(shape.pairs * shape.batches)]


def _end(task: Any, name: str) -> int:
    """Id of the end token of each answer."""
    return int((task.written["train"][0] if name == "sft" else task.set.answers[0]).ids[-1])


def _row(task: Any, name: str, number: int) -> dict[str, Any]:
    """Example `number` of our task in the form that trl's trainer expects."""
    if name == "sft":
        written = task.written["train"][number]
        labels = [int(t) if said else -100 for t, said in zip(written.ids, written.said, strict=True)]
        return {"input_ids": written.ids.tolist(), "labels": labels}
    members = task.units[number][0] if name == "preference" else task.set.judged["train"][number].members
    chosen, rejected = (task.set.answers[i] for i in members)
    if name == "reward":
        return {"chosen_ids": chosen.ids.tolist(), "rejected_ids": rejected.ids.tolist()}
    parts = chosen.ids[: chosen.first], chosen.ids[chosen.first :], rejected.ids[rejected.first :]
    return dict(zip(("prompt", "chosen", "rejected"), map(_text, parts), strict=True))


def _text(ids: Any) -> str:
    """Write ids as a text: DPOTrainer accepts only texts."""
    return "".join(f"<{i}>" for i in ids)


def _reader(vocab: int, end: int) -> Any:
    """Make the tokenizer that maps the texts of `_text` back to ids."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(vocab)}, unk_token="<0>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("<[0-9]+>"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=f"<{end}>", pad_token=f"<{vocab - 1}>")


def _endless(rows: list[Any], size: int) -> Iterator[list[Any]]:
    while True:
        for i in range(0, len(rows), size):
            yield rows[i : i + size]
