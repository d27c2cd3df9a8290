"""README's table of options, generated from the registries by `python -m ablatio.testing.readme_table`."""

from ablatio.config import kind_lists, yaml_files
from ablatio.registry.catalogue import OURS
from ablatio.registry.discovery import load
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import HERE

README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- options: made by `python -m ablatio.testing.readme_table` -->\n", "<!-- end of options -->\n"


def table() -> str:
    """One row for each kind in config order, then the kinds of sweeps, then the presets."""
    load()
    kinds = [*kind_lists.listed(), *(r for r in REGISTRIES.values() if not r.in_run)]
    rows = {r.kind: [e.name for e in r if e.distribution.name == OURS] for r in kinds}
    rows[yaml_files.PRESET] = [f.name for f in yaml_files.options_of(yaml_files.PRESET).values() if _is_ours(f)]
    lines = (f"| `{kind}=` | {' '.join(names)} |" for kind, names in rows.items() if names)
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _is_ours(file: yaml_files.File) -> bool:
    return file.distribution.name == OURS


def written(text: str) -> str:
    """README text with the current table between its two markers."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def current() -> bool:
    """True if README.md contains the current table."""
    text = README.read_text(encoding="utf-8")
    return BEGIN in text and written(text) == text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
