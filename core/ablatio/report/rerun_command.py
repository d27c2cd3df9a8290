"""Command lines that repeat a run, or all runs of an arm."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablatio.config.words import key_of, text_value, value_of
from ablatio.registry import parts_file
from ablatio.registry.kinds import designs

if TYPE_CHECKING:
    from ablatio.config.compose_many import Composer

PLACES = ("out", "name")  # the folder of a run does not change its numbers
SEED = "seed"
THREADS = "trainer.threads"
ONE_ARM = (f"design={designs.usual}", "tune=null")  # the arms of a study file are chosen and tuned already


def line(command: Sequence[str], *, many: bool = False) -> str:
    """Return `ablatio train ...` quoted for a shell; empty for an empty command."""
    return f"ablatio train {'-m ' if many else ''}" + shlex.join(command) if command else ""


def of_run(overrides: Sequence[str], config: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the overrides that repeat a run, without its folder and with the thread count it used.

    A run of a sweep uses one thread, a single run one per core, and sums over another number of threads round
    differently.
    """
    kept = [text for text in overrides if key_of(text) not in PLACES]
    threads = _inner(config, "trainer").get("threads")
    on_cpu = _inner(manifest, "machine").get("device") == "cpu"
    if kept and on_cpu and isinstance(threads, int) and THREADS not in map(key_of, kept):
        kept.append(f"{THREADS}={threads}")
    return (*kept, *(parts_file.words(_inner(manifest, parts_file.RECORD)) if kept else ()))


def of_arm(commands: Sequence[Sequence[str]]) -> str:
    """Return one command for all runs of an arm: a sweep over its seeds if the runs differ in nothing else."""
    known = [command for command in commands if command]
    if not known:
        return ""
    rest = [text for text in known[0] if key_of(text) != SEED]
    seeds = [value_of(text) for command in known for text in command if key_of(text) == SEED]
    alike = all([t for t in command if key_of(t) != SEED] == rest for command in known)
    # Runs that differ in more, as by what was tuned for each, have no command in common.
    if len(known) < 2 or not alike or len({*seeds}) != len(known):
        return line(known[0])
    one = ONE_ARM if any(text.lstrip("+").startswith("sweep=") for text in rest) else ()
    return line([*rest, *one, f"{SEED}={','.join(seeds)}"], many=True)


def of_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the overrides of a run outside any study: all settings in which its config differs from the default.

    Empty if the config names a part that is not installed: then no command repeats it.
    """
    # Parts first: which knobs have which defaults depends on them.
    parts = tuple(_parts(config, _composed(()) or {}))
    base = _composed(parts)
    if not base:
        return ()
    rest = (text for text in _values(config, base, "") if key_of(text) != SEED)
    return (*parts, *rest, f"{SEED}={config.get(SEED, 1)}")


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Compose a config without checking that it can run; None if it cannot be composed."""
    found = _composer().tree(overrides)
    return found[0] if found else None


@functools.cache
def _composer() -> Composer:
    from ablatio.config.compose_many import Composer
    from ablatio.config.hydra_sources import register_with_hydra

    register_with_hydra()
    return Composer()


def _parts(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options that differ from the default config."""
    from ablatio.registry.registry import REGISTRIES

    for kind, registry in REGISTRIES.items():
        mine, other = config.get(kind), base.get(kind)
        if registry.multiple:
            if isinstance(mine, Mapping) and [*mine] != [*(other or ())]:
                yield f"{kind}=[{','.join(mine)}]"
        elif _name(mine) != _name(other) and (kind in config or other is None):
            yield f"{kind}={_name(mine) or 'null'}"


def _name(node: Any) -> str:
    name = node.get("name") if isinstance(node, Mapping) else None
    return name if isinstance(name, str) else ""  # a damaged config may hold anything there


def _values(mine: Mapping[str, Any], base: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in mine.items():
        where = f"{prefix}{key}"
        if (key == "name" and prefix) or where in (*PLACES, "trainer", "sweep"):
            continue
        known = base.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            yield from _values(value, known, f"{where}.")
        # A key that the installed version does not know would make the whole command fail.
        elif key in base and value != known:
            yield f"{where}={_text(value)}"


def _text(value: Any) -> str:
    """Write a value in Hydra's grammar."""
    if isinstance(value, str):
        return text_value(value)
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def _inner(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = node.get(key)
    return found if isinstance(found, Mapping) else {}
