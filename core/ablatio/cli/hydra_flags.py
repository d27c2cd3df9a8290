"""Flags that Hydra answers itself: `ablatio train --cfg job`, `--info`, `--hydra-help`."""

import sys

from ablatio.config.hydra_sources import register_with_hydra
from ablatio.config.words import with_quoted_schedules
from ablatio.storage.paths import shipped


def hydra_flags(arguments: list[str]) -> int:
    """Pass the command line to Hydra, which prints its answer; no run is started."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_with_hydra()
    GlobalHydra.instance().clear()
    old, sys.argv = sys.argv, ["ablatio", *map(with_quoted_schedules, arguments)]
    try:
        hydra.main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(lambda node: None)()
    finally:
        sys.argv = old
    return 0
