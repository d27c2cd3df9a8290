"""The command line that makes a run, or all runs of an arm, again."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablatio.config.words import key_of, value_of
from ablatio.registry.kinds import designs

if TYPE_CHECKING:
    from ablatio.config.compose_many import Composer

PLACES = ("out", "name")  # where a run lies is no part of it
SEED = "seed"
THREADS = "trainer.threads"
ONE_ARM = (f"design={designs.usual}", "tune=null")  # a study's file may say how arms are chosen and tuned: that is done
_PLAIN = re.compile(r"[\w./+-]+")


def line(command: Sequence[str], *, many: bool = False) -> str:
    """As a shell takes it."""
    return f"ablatio train {'-m ' if many else ''}" + shlex.join(command) if command else ""


def of_run(overrides: Sequence[str], config: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What the user said of the run, without its place, and with the threads that it had: a run of a sweep has one,
    a run by itself as many as there are cores, and sums over more threads are rounded in another order."""
    kept = [text for text in overrides if key_of(text) not in PLACES]
    threads = _inner(config, "trainer").get("threads")
    on_cpu = _inner(manifest, "machine").get("device") == "cpu"
    if kept and on_cpu and isinstance(threads, int) and THREADS not in map(key_of, kept):
        kept.append(f"{THREADS}={threads}")
    return tuple(kept)


def of_arm(commands: Sequence[Sequence[str]]) -> str:
    """All runs of an arm in one line: a sweep over its seeds, where nothing else tells them apart."""
    known = [command for command in commands if command]
    if not known:
        return ""
    rest = [text for text in known[0] if key_of(text) != SEED]
    seeds = [value_of(text) for command in known for text in command if key_of(text) == SEED]
    alike = all([t for t in command if key_of(t) != SEED] == rest for command in known)
    if len(known) < 2 or not alike or len({*seeds}) != len(known):
        return line(known[0])
    one = ONE_ARM if any(text.lstrip("+").startswith("sweep=") for text in rest) else ()
    return line([*rest, *one, f"{SEED}={','.join(seeds)}"], many=True)


def of_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The overrides of a run that no study planned: all in which its config differs from the default one's.

    Nothing where it names a part that is not known here: then no command makes it.
    """
    parts = tuple(_parts(config, _composed(()) or {}))
    base = _composed(parts)
    if not base:
        return ()
    rest = (text for text in _values(config, base, "") if key_of(text) != SEED)
    return (*parts, *rest, f"{SEED}={config.get(SEED, 1)}")


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The config that these give, whether or not it could run; None where there is none."""
    found = _composer().tree(overrides)
    return found[0] if found else None


@functools.cache
def _composer() -> Composer:
    from ablatio.config.compose_many import Composer
    from ablatio.config.hydra_sources import register_with_hydra

    register_with_hydra()
    return Composer()


def _parts(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    """The options that are not the default ones."""
    from ablatio.registry.registry import REGISTRIES

    for kind, registry in REGISTRIES.items():
        mine, other = config.get(kind), base.get(kind)
        if registry.multiple:
            if isinstance(mine, Mapping) and [*mine] != [*(other or ())]:
                yield f"{kind}=[{','.join(mine)}]"
        elif _name(mine) != _name(other) and (kind in config or other is None):
            yield f"{kind}={_name(mine) or 'null'}"


def _name(node: Any) -> str:
    return str(node.get("name") or "") if isinstance(node, Mapping) else ""


def _values(mine: Mapping[str, Any], base: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in mine.items():
        where = f"{prefix}{key}"
        if (key == "name" and prefix) or where in (*PLACES, "trainer", "sweep"):
            continue
        known = base.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            yield from _values(value, known, f"{where}.")
        elif key in base and value != known:
            yield f"{where}={_text(value)}"


def _text(value: Any) -> str:
    """A value in Hydra's grammar."""
    from ablatio.config.inherit import quoted

    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def _inner(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = node.get(key)
    return found if isinstance(found, Mapping) else {}
