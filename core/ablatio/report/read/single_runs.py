"""Run folders outside any study: the differences between their configs define the arms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.config.kind_lists import CHANCE, volatile
from ablatio.registry.registry import REGISTRIES
from ablatio.report.read.run import Run, object_in, read_folder
from ablatio.report.rerun_command import of_config
from ablatio.sweep.study import Job


def folders_in(folder: Path) -> list[Path]:
    """Return the run folders inside a folder, or the folder itself if it is one."""
    if (folder / "config.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/config.json"))


def runs_of(folders: Sequence[Path]) -> list[Run]:
    """Read runs; the settings that they do not all share become their arm."""
    configs = [object_in(f / "config.json")[0] for f in folders]
    # A seed is a replicate and a folder or thread count no choice: none of them makes another arm.
    no_axes = (*CHANCE, *volatile())
    flat = [_settings({k: v for k, v in c.items() if k not in no_axes}) for c in configs]
    keys = list(dict.fromkeys(k for f in flat for k in f))
    axes = [k for k in keys if len({f.get(k) for f in flat}) > 1]
    # The knobs of a part come and go with its name, so they are no axes of their own.
    names = [k for k in axes if k.endswith(".name") or (k in REGISTRIES and REGISTRIES[k].multiple)]
    named = {k.removesuffix(".name") for k in names}
    axes = [k for k in axes if k in names or k.split(".")[0] not in named or _knob_varies(k, flat)]
    runs = []
    for folder, config, values in zip(folders, configs, flat, strict=True):
        arm = {k.removesuffix(".name"): values[k] for k in axes if k in values}
        seed = config.get("seed")
        job = Job(folder.name, arm, seed if isinstance(seed, int) else 0, of_config(config), config)
        runs.append(read_folder(folder, folder.parent.name, job))
    return runs


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings of a config as text; of a kind with several options also their names in one: filter=[language,pii]."""
    found = flatten(config)
    for kind, registry in REGISTRIES.items():
        if registry.multiple and isinstance(chosen := config.get(kind), Mapping):
            found[kind] = f"[{','.join(map(str, chosen))}]"
    return found


def _knob_varies(key: str, flat: Sequence[Mapping[str, str]]) -> bool:
    """True if a knob differs between runs with the same part."""
    part = key.split(".")[0] + ".name"
    seen: dict[str, set[str]] = {}
    for values in flat:
        if key in values:
            seen.setdefault(values.get(part, ""), set()).add(values[key])
    return any(len(s) > 1 for s in seen.values())


def flatten(node: Any, prefix: str = "") -> dict[str, str]:
    """{"norm": {"name": "rmsnorm"}} -> {"norm.name": "rmsnorm"}; every leaf as text."""
    if isinstance(node, Mapping) and node:
        return {k: v for key, child in node.items() for k, v in flatten(child, f"{prefix}.{key}").items()}
    text = node if isinstance(node, str) else json.dumps(node, default=str)
    return {prefix.lstrip("."): text}
