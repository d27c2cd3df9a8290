"""Flags that print and do not train: `ablatio train --cfg job`, `--info`, `--hydra-help`."""

import sys
from collections.abc import Sequence
from typing import Any

from ablatio.config.compose import compose_run
from ablatio.config.hydra_habits import with_places
from ablatio.config.hydra_sources import register_with_hydra
from ablatio.config.overrides import normal
from ablatio.errors import UserError
from ablatio.storage.paths import shipped

WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")  # the value may follow as a word of its own
PRINTED = ("--cfg", "-c")
SHOWN = {"job": "the config of the run", "hydra": "Hydra's own settings", "all": "both"}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def hydra_flags(arguments: Sequence[str]) -> int:
    """Answer `--cfg`, `--info` or `--hydra-help` without starting a run.

    `--cfg job` prints the checked config of the run; everything else is printed by Hydra, after the same check.
    """
    flags, words = _sorted(arguments)
    overrides = with_places(words, "hydra.run.dir")
    asked = next((flags[flag] for flag in PRINTED if flag in flags), None)
    if asked is not None and asked not in SHOWN:
        known = ", ".join(f"{name} ({what})" for name, what in SHOWN.items())
        raise UserError(f"--cfg {asked} is not known; expected one of {known}\n    try: ablatio train --cfg job")
    info = next((flags[flag] for flag in ("--info", "-i") if flag in flags), None)
    if info not in (None, "", *INFO):
        raise UserError(f"--info {info} is not known; expected one of {', '.join(INFO)}\n    try: ablatio train --info")
    composed = None if "--hydra-help" in flags else compose_run(overrides)
    if composed is None or asked != "job":
        return _by_hydra([*_words(flags), *map(normal, overrides)])
    node: Any = composed.config if "--resolve" in flags else composed.public
    for part in filter(None, flags.get("--package", flags.get("-p", "")).split(".")):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"--package {part} is not in the config\n    try: ablatio train --cfg job --package model")
        node = node[part]
    print(_yaml(node))
    return 0


def _sorted(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(value of each flag, the settings): `--cfg job` and `--cfg=job` alike."""
    flags, overrides, waiting = dict[str, str](), list[str](), ""
    for word in arguments:
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            flags[flag] = value
            waiting = flag if flag in WITH_VALUE and not equals else ""
        # The value of `--info` is optional, and a setting that follows it is not its value.
        elif waiting and "=" not in word and not word.startswith("~"):
            flags[waiting], waiting = word, ""
        else:
            overrides.append(word)
            waiting = ""
    return flags, overrides


def _words(flags: dict[str, str]) -> list[str]:
    return [word for flag, value in flags.items() for word in ((flag, value) if value else (flag,))]


def _yaml(node: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(node)).rstrip() if isinstance(node, dict | list) else str(node)


def _by_hydra(arguments: list[str]) -> int:
    """Pass the command line to Hydra, which prints its answer."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_with_hydra()
    GlobalHydra.instance().clear()
    old, sys.argv = sys.argv, ["ablatio", *arguments]
    try:
        hydra.main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(lambda node: None)()
    finally:
        sys.argv = old
    return 0
