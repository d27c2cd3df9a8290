"""The example of each kind, its test, and the settings with which it is tried.

`examples/KIND.py` is a complete part, the shortest that keeps its contract: `ablatio show KIND --author` prints it and
`ablatio new-plugin --kind KIND` starts from it.  `examples/tests/KIND.py` is a test of its formula.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ablatio.cli.scaffold.part_source import part_source
from ablatio.errors import UserError, did_you_mean
from ablatio.registry.consumers import knobs_of
from ablatio.registry.registry import REGISTRIES

EXAMPLES = Path(__file__).parent / "examples"
NAME = re.compile(r"\.register\(\s*[\"'](\w+)[\"']")


@dataclass(frozen=True, slots=True)
class Tried:
    """How a part of a kind is tried.

    beside  options that a run with such a part needs
    sweep   overrides of a sweep in which it is compared; $name is the part
    run     False if a run's config cannot name it, because it is chosen for a sweep or for a trained model
    command used in place of a sweep: the words after `ablatio`
    """

    beside: tuple[str, ...] = ()
    sweep: str = ""
    run: bool = True
    command: str = ""


TRIED: dict[str, Tried] = {
    "embedding": Tried(sweep="embedding=plain,$name"),
    "shortcut": Tried(sweep="shortcut=none,$name"),
    "head": Tried(sweep="head=plain,$name"),
    "norm": Tried(sweep="norm=rmsnorm,$name"),
    "placement": Tried(sweep="placement=pre,$name"),
    "activation": Tried(sweep="activation=gelu,$name"),
    "mlp": Tried(sweep="mlp=dense,$name"),
    "position": Tried(sweep="position=rope,$name"),
    "attention": Tried(
        ("position=none", "data.document_mask=false"),
        "position=none data.document_mask=false attention=mha,$name",
    ),
    "block": Tried(sweep="block=sequential,$name"),
    "architecture": Tried(sweep="architecture=causal,$name"),
    "init": Tried(sweep="init=gpt2,$name"),
    "objective": Tried(sweep="objective=lm,$name"),
    "optimizer": Tried(sweep="optimizer=adamw,$name"),
    "schedule": Tried(sweep="schedule=cosine,$name"),
    "stabilizer": Tried(sweep="stabilizer=clip,$name"),
    "checkpointing": Tried(sweep="checkpointing=none,$name"),
    "strategy": Tried(("trainer.devices=2",), "norm=rmsnorm,layernorm strategy=$name trainer.devices=2"),
    "task": Tried(sweep="task=pretrain,$name"),
    "logger": Tried(sweep="norm=rmsnorm,layernorm logger=[csv,$name]"),
    "quantization": Tried(("peft=lora",), "peft=lora quantization=none,$name"),
    "peft": Tried(sweep="peft=lora,$name"),
    "alignment": Tried(("task=preference", "source=sentiment"), "task=preference source=sentiment alignment=dpo,$name"),
    "reward": Tried(
        ("task=policy", "source=sentiment", "alignment=grpo"),
        "task=policy source=sentiment alignment=grpo reward=length,$name",
    ),
    "source": Tried(sweep="source=sotu,$name"),
    "tokenizer": Tried(sweep="tokenizer=bytes,$name"),
    "filter": Tried(sweep="filter=[],[$name]"),
    "mixture": Tried(
        ("source=several", "source.of=[sotu,zh_classics]"),
        "source=several source.of=[sotu,zh_classics] mixture=proportional,$name",
    ),
    "curriculum": Tried(sweep="curriculum=null,$name"),
    "template": Tried(("task=sft", "source=gsm_symbolic"), "task=sft source=gsm_symbolic template=plain,$name"),
    "eval": Tried(sweep="norm=rmsnorm,layernorm eval=[$name]"),
    "metric": Tried(("eval=[copying]",), "norm=rmsnorm,layernorm eval=[copying] metric=[$name]"),
    "decode": Tried(command='generate runs/first "The people" decode=$name', run=False),
    "prompt": Tried(command='generate runs/first "What is 2+3?" prompt=$name', run=False),
    "design": Tried(sweep="norm=rmsnorm,layernorm position=rope,alibi design=$name", run=False),
    "launcher": Tried(sweep="norm=rmsnorm,layernorm launcher=$name", run=False),
}


def example(kind: str) -> str:
    """Source of the example of a kind: ours, or for a kind of a plugin the shortest of its parts.

    Raises:
        UserError: there is no such kind, or it has no part whose source can be read.
    """
    if kind not in REGISTRIES:
        raise UserError(
            f"there is no kind {kind}{did_you_mean(kind, REGISTRIES) or ';'} there are {', '.join(REGISTRIES)}\n"
            "    try: ablatio new-plugin my-parts --kind norm"
        )
    path = EXAMPLES / f"{kind}.py"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    entries = sorted(REGISTRIES[kind], key=lambda entry: entry.name == REGISTRIES[kind].default)
    found = [text for entry in entries if (text := part_source(entry))]
    if found and REGISTRIES[kind].default:
        found = found[:-1] or found  # the option that means "as before" shows least
    if not found:
        raise UserError(
            f"the kind {kind} of {REGISTRIES[kind].distribution} has no part to start from\n"
            "    try: ablatio new-plugin my-parts --kind norm"
        )
    return min(found, key=len)


def tried(kind: str) -> Tried:
    """How a part of a kind is tried; for a kind of a plugin, what follows from its uses."""
    if kind in TRIED:
        return TRIED[kind]
    registry = REGISTRIES[kind]
    if knobs := [] if registry.attaches else knobs_of(kind):
        part, _, knob = knobs[0].partition(".")
        return Tried(sweep=f"{part} {part.partition('=')[0]}.{knob}=$name", run=False)
    other = f"{registry.default}," if registry.default else ""
    return Tried(sweep=f"{kind}={other}$name", run=registry.in_run)


def option_of(text: str) -> str:
    """The name under which an example registers."""
    found = NAME.search(text)
    assert found is not None, "an example registers a part"
    return found[1]


def renamed(text: str, old: str, new: str) -> str:
    """An example or its test with another option name."""
    return re.sub(rf"(?<=[\"']){old}(?=[\"'])|(?<==){old}(?=[\"'\s])", new, text)


def test_of(kind: str) -> str:
    """Source of the test of an example; "" for kinds of plugins."""
    path = EXAMPLES / "tests" / f"{kind}.py"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
