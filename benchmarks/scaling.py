"""Simulated scaling of the strategies to 1024 devices: computing time of one device and a model of the network.

    python benchmarks/scaling.py [--json FILE] [--page FILE]

Nothing here is measured but the computing time of the job `cores` (results/strategies.json) and how long two stages of
a pipeline were idle (results/pipeline.json).  Time of a step on n devices:

    t(n) = s(n) t(1) + sum of c that nothing hides + sum over passes of max(sum of its c - o p t(1) s(n), its first c)

s  share of the work that the slowest device has: 1 / n if it divides evenly, 1 if each device brings its own rows
c  time of a collective: bytes / bandwidth + messages x latency
p  share of a pass (forward, backward) in the computing time; o: part of it behind which what is sent can be hidden.
   The first collective of a pass, or the last one, has nothing to hide behind

A pipeline of p stages passes m microbatches through them.  Its slowest stage sets the pace of m + p - 1 turns:

    t(p) = (m + p - 1) (s(p) t(1) / m + 2 c)

c is the time in which the residual stream of a microbatch, or its gradient, goes to the next stage; nothing hides it.

Gathers and scatters go around a ring, n - 1 messages; sums over a tree, 2 log2 n messages, of which those between nodes
are slow.  Each device of a node has a connection of its own to the other nodes.  Efficiency is the speed of n devices
over n times that of one.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _traffic import Collective, Model, collectives

RESULTS = Path(__file__).parent / "results"
DEVICES = tuple(2**i for i in range(11))
BY_ROWS = ("ddp", "zero1", "zero2", "fsdp", "zero3")
BEGIN = "<!-- tables: made by `python benchmarks/scaling.py --page docs/howto/scaling.md` -->\n"
END = "<!-- end of tables -->\n"
TITLES = {
    "rows": "GPUs, 16 rows each",
    "batch": "GPUs, 1024 rows in all",
    "divided": "GPUs, layers or tokens divided",
    "pipeline": "GPUs, layers in stages, m microbatches of 1024 rows in all",
    "cores": "cores over Ethernet",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster, as the model knows it.

    per_node         devices of a node
    inside, between  bytes per second that a device sends to another one of its node, and of another node
    near, far        seconds that a message takes, likewise
    overlap          part of the computing time of a pass behind which what is sent can be hidden
    """

    per_node: int
    inside: float
    between: float
    near: float
    far: float
    overlap: float

    def seconds(self, each: Collective, world: int) -> float:
        """Time of collective operations among `world` devices."""
        nodes = -(-world // self.per_node)
        speed = self.inside if nodes == 1 else min(self.inside, min(world, self.per_node) * self.between)
        if each.kind == "sum":
            far, near = 2 * math.ceil(math.log2(nodes)), 2 * math.ceil(math.log2(world / nodes))
        else:
            far, near = nodes - 1, world - nodes
        return each.sent(world) / speed + each.calls * (near * self.near + far * self.far)


@dataclass(frozen=True, slots=True)
class Job:
    """Work of one device in a step, and what decides what is sent.

    fixed      the work is the same for any number of devices; False: each brings as much
    seconds    computing time of a step
    head       share of the computing time in embedding and head, which `tensor` does not divide
    attention  share of scores and weighted sums of the attention, which `context` divides unevenly
    tokens     of the rows that all devices have: `tensor`, `context`, pipeline
    """

    model: Model
    seconds: float
    fixed: bool
    head: float = 0.0
    attention: float = 0.0
    tokens: int = 0


def share(strategy: str, job: Job, world: int) -> float:
    """Share of the computing time of one device that the slowest of `world` has."""
    if strategy == "tensor":
        return job.head + (1 - job.head) / world
    if strategy == "context":  # the last part of a row sees all keys: the sum of its keys is 2 n - 1 in n^2
        return (1 - job.attention) / world + job.attention * (2 * world - 1) / world**2
    return 1 / world if job.fixed else 1.0


def step_seconds(strategy: str, job: Job, machine: Machine, world: int) -> float:
    """Time of a step on `world` devices."""
    computing = share(strategy, job, world) * job.seconds
    passes: dict[float, list[tuple[float, int]]] = {}
    for each in collectives(strategy, job.model, tokens=job.tokens) if world > 1 else ():
        passes.setdefault(each.during, []).append((machine.seconds(each, world), each.calls))
    exposed = sum(
        max(sum(t for t, _ in sent) - machine.overlap * part * computing, max(t / calls for t, calls in sent))
        for part, sent in passes.items()
    )
    return computing + exposed


def stage_share(job: Job, stages: int) -> float:
    """Share of the computing time of one device that the slowest stage has: the first, or the last, with the head."""
    layers = job.model.n_layers
    each = (1 - job.head) / layers
    return max(-(-layers // stages) * each, layers // stages * each + job.head)


def pipeline_efficiency(job: Job, machine: Machine, stages: int, microbatches: int) -> float:
    """Speed of a pipeline of `stages` devices / (`stages` times that of one)."""
    if stages == 1:
        return 1.0
    near = stages <= machine.per_node  # else the slowest connection of two stages is between nodes
    sent = job.tokens / microbatches * job.model.activation / (machine.inside if near else machine.between)
    turn = stage_share(job, stages) * job.seconds / microbatches + 2 * (sent + (machine.near if near else machine.far))
    return job.seconds / (stages * (microbatches + stages - 1) * turn)


def efficiency(strategy: str, job: Job, machine: Machine, world: int) -> float:
    """Speed of `world` devices / (`world` times that of one)."""
    return (1 / world if job.fixed else 1.0) * job.seconds / step_seconds(strategy, job, machine, world)


# Of NVLink's 450 GB/s and of a 400 Gb/s adapter for each GPU, 80 % are reached; of 10 Gb/s Ethernet too.
H100 = Machine(per_node=8, inside=360e9, between=40e9, near=2e-6, far=8e-6, overlap=0.9)
ETHERNET = Machine(per_node=1, inside=1.0e9, between=1.0e9, near=3e-5, far=3e-5, overlap=0.9)
PEAK, REACHED = 989e12, 0.4  # FLOPs per second of an H100 SXM in bf16, and the part that training reaches
PRESET, ROWS, LONG = ("preset=pythia", "size=1.4b"), 16, 2**17
BATCH = 1024  # rows
MICROBATCHES = (1, 4, 16)  # for each stage
SENT = 2  # bytes of a number of the residual stream, of a key or a value: bf16


def jobs() -> dict[str, Job]:
    """The work: of a GPU by FLOPs, in short rows and in one long row; of a core as it was measured."""
    from ablatio.config.compose import compose_run
    from ablatio.training.memory_per_device import memory_per_device
    from ablatio.training.run_spec import RunSpec

    config = compose_run(PRESET).config
    spec, sizes = RunSpec(config), config["model"]
    memory, width = memory_per_device(spec), sizes["d_model"]
    model = Model(memory.weights, memory.outside, sizes["n_layers"], SENT * width, 2 * SENT * width)
    short, long, twice = (spec.cost(length) for length in (spec.length, LONG, 2 * LONG))
    each, one, two = (c.layers + c.layers_backward + c.head + c.head_backward for c in (short, long, twice))
    measured = json.loads((RESULTS / "strategies.json").read_text(encoding="utf-8"))
    core = measured["strategies"]
    tokens = ROWS * spec.length
    head = (short.head + short.head_backward) / each
    seconds = each * tokens / (PEAK * REACHED)
    return {
        "rows": Job(model, seconds, False),
        "batch": Job(model, seconds * BATCH / ROWS, True),
        "tensor": Job(model, seconds, True, head=head, tokens=tokens),
        "pipeline": Job(model, seconds * BATCH / ROWS, True, head=head, tokens=BATCH * spec.length),
        "context": Job(model, one * LONG / (PEAK * REACHED), True, attention=(two - one) / one, tokens=LONG),
        "cores": Job(Model(core["ddp"]["sent_formula"], 0.0, measured["n_layers"]), core["one"]["cpu_seconds"], False),
    }


def simulate(work: Mapping[str, Job]) -> dict[str, dict[str, dict[str, float]]]:
    """Efficiency by table, strategy and number of devices; `tensor` stays within a node, a stage has a layer."""

    def row(strategy: str, job: str, machine: Machine) -> dict[str, float]:
        worlds = [n for n in DEVICES if strategy != "tensor" or n <= machine.per_node]
        return {str(n): round(efficiency(strategy, work[job], machine, n), 4) for n in worlds}

    def stages(factor: int) -> dict[str, float]:
        job = work["pipeline"]
        worlds = [n for n in DEVICES if n <= job.model.n_layers]
        return {str(n): round(pipeline_efficiency(job, H100, n, factor * n), 4) for n in worlds}

    return {
        "rows": {name: row(name, "rows", H100) for name in BY_ROWS},
        "batch": {name: row(name, "batch", H100) for name in BY_ROWS},
        "divided": {name: row(name, name, H100) for name in ("tensor", "context")},
        "pipeline": {f"m = {k} p" if k > 1 else "m = p": stages(k) for k in MICROBATCHES},
        "cores": {name: row(name, "cores", ETHERNET) for name in BY_ROWS},
    }


def results() -> dict[str, Any]:
    """All that results/scaling.json holds: what was assumed, and what follows."""
    work = jobs()
    return {
        "preset": " ".join(PRESET), "rows": ROWS, "batch": BATCH, "long_row": LONG, "peak": PEAK, "reached": REACHED,
        "machines": {"h100": asdict(H100), "cores": asdict(ETHERNET)},
        "jobs": {name: asdict(job) for name, job in work.items()},
        "efficiency": simulate(work),
    }  # fmt: skip


def tables(found: Mapping[str, Any]) -> str:
    """The tables of the page in Markdown, between its two markers."""
    parts = []
    for name, title in TITLES.items():
        lines = [[title, *map(str, DEVICES)], ["---"] * (len(DEVICES) + 1)]
        for strategy, values in found["efficiency"][name].items():
            lines.append([f"`{strategy}`", *(f"{values[n]:.2f}" if n in values else "" for n in lines[0][1:])])
        parts.append("\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), ""]))
    return "\n" + "\n".join([*parts, idle()]) + "\n"


def idle() -> str:
    """Table of what share of a step two stages on CPU processes were idle, as it was measured and by the formula."""
    measured = json.loads((RESULTS / "pipeline.json").read_text(encoding="utf-8"))["strategies"]
    lines = [["two CPU processes", "m", "idle by the formula", "measured"], ["---"] * 4]
    for name, schedule in (("pipeline 1f1b", "1f1b"), ("pipeline gpipe", "gpipe"), ("pipeline of 2", "1f1b")):
        share = measured[name]["idle_formula"]  # 1 / (m + 1)
        lines.append([f"`{schedule}`", f"{1 / share - 1:.0f}", f"{share:.2f}", f"{measured[name]['idle']:.2f}"])
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), ""])


def written(text: str, found: Mapping[str, Any]) -> str:
    """The text of the page with these tables."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + tables(found) + END + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="compute, and write assumptions and figures to it")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables of results/scaling.json into it")
    args = parser.parse_args()
    file = RESULTS / "scaling.json"
    found = results() if args.json or not file.exists() else json.loads(file.read_text(encoding="utf-8"))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.page:
        args.page.write_text(written(args.page.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(tables(found))


if __name__ == "__main__":
    sys.exit(main())
