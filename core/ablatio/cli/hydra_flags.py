"""Flags that Hydra answers itself: `ablatio train --cfg job`, `--info`, `--hydra-help`."""

import sys

from ablatio.config import yaml_files
from ablatio.config.hydra_sources import register_with_hydra
from ablatio.storage.paths import shipped


def hydra_flags(arguments: list[str]) -> int:
    """Pass the command line to Hydra, which prints its answer; no run is started."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_with_hydra()
    yaml_files.take_in([word for word in arguments if not word.startswith("-")])
    GlobalHydra.instance().clear()
    old, sys.argv = sys.argv, ["ablatio", *arguments]
    try:
        hydra.main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(lambda node: None)()
    finally:
        sys.argv = old
    return 0
