"""Replicates that vary single random streams: `seeds.data=1,2,3` repeats each arm with three orders of the data.

A block is a combination of seeds with which every arm runs once.  It is numbered by its seed, or, if several streams
vary, by their seeds one after the other: init 2 and data 3 are block 23.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from ablatio.config.problems import value_problems
from ablatio.config.schema import SECTIONS, section_knobs
from ablatio.config.words import key_of, value_of
from ablatio.errors import Problem
from ablatio.registry.kinds.search_space import Axis

SEED = "seed"
STREAMS = tuple(f"seeds.{knob.name}" for knob in section_knobs(SECTIONS["seeds"]))


def problems(streams: Sequence[Axis]) -> Iterator[Problem]:
    """Problems of the seeds of single streams."""
    knobs = {f"seeds.{knob.name}": knob for knob in section_knobs(SECTIONS["seeds"])}
    for axis in streams:
        for text in axis.values:
            yield from value_problems(axis.key, knobs[axis.key], int(text) if text.lstrip("-").isdigit() else text)


def blocks(seeds: Sequence[int], streams: Sequence[Axis]) -> dict[int, dict[str, str]]:
    """{number of the block: its settings}: all combinations of the seeds; empty without `streams`.

    seeds    values of `seed`, which all streams use that have no seed of their own
    streams  axes `seeds.init` and the like, with whole numbers
    """
    if not streams:
        return {}
    varied = [Axis(SEED, tuple(map(str, seeds)))] if len(seeds) > 1 else []
    varied += streams
    fixed = {} if len(seeds) > 1 else {SEED: str(seeds[0])}
    widths = [max(map(len, axis.values)) for axis in varied]
    found = {}
    for values in product(*(axis.values for axis in varied)):
        number = int("".join(value.zfill(width) for value, width in zip(values, widths, strict=True)))
        found[number] = fixed | {axis.key: value for axis, value in zip(varied, values, strict=True)}
    return found


def note(overrides: Sequence[str]) -> Iterator[str]:
    """What varies between the replicates, and what stays as it is."""
    varied = [key_of(text) for text in overrides if key_of(text) in STREAMS and "," in value_of(text)]
    seeds = any(key_of(text) == SEED and "," in value_of(text) for text in overrides)
    kept = [key for key in STREAMS if key not in varied]
    if varied and kept and not seeds:
        yield (
            f"replicates differ in {' and '.join(varied)} alone; {' and '.join(kept)} "
            f"{'are those' if len(kept) > 1 else 'is that'} of seed= in all of them"
        )


def described(config: Mapping[str, object]) -> dict[str, int]:
    """Seed of each stream of a run: {"init": 1, "data": 3, "dropout": 1}; empty if the config does not say them."""
    own, shared = config.get("seeds"), config.get(SEED)
    if not isinstance(own, Mapping) or not isinstance(shared, int):
        return {}
    found = {str(name): shared if value is None else value for name, value in own.items()}
    return {name: value for name, value in found.items() if isinstance(value, int)}
