"""A hook of mkdocs: the menu gets an entry for each generated page of a kind; no list of kinds is kept."""

from pathlib import Path
from typing import Any

PLACE = Path("reference") / "kinds"


def on_config(config: Any) -> Any:
    """Add reference/kinds/*.md below the menu's entry Reference."""
    pages = sorted((Path(config.docs_dir) / PLACE).glob("*.md"))
    if not pages:
        raise SystemExit("docs/reference is missing\n    try: make docs")
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"Kinds": [{path.stem: (PLACE / path.name).as_posix()} for path in pages]})
    return config
