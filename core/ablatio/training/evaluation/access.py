"""What evaluations and metrics may read beside the model: the texts of the run's source, and other runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ablatio.data.items import OpenRun, Texts
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Split
from ablatio.model.builder import PartChoice
from ablatio.model.evaluation.responder import Responder
from ablatio.registry import kinds


@dataclass(frozen=True, slots=True)
class Access:
    """Wiring of evaluations and metrics.

    texts     texts(split) iterates over the texts of one split of the run's source
    open_run  open_run(folder) returns the responder of another run's model
    code      True if metrics may run programs that the model wrote
    """

    texts: Texts
    open_run: OpenRun
    code: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], *, code: bool = False) -> "Access":
        """Access for a run with this config."""

        def texts(split: Split) -> Iterator[str]:
            choice = PartChoice.of(config["source"])
            source = kinds.sources.build(choice.name, choice.knobs)
            for document in TrainValSplit(source, config["data"]["val_fraction"]).documents(split):
                yield document.text

        return cls(texts, open_run, code)


@lru_cache(2)
def open_run(folder: str) -> Responder:
    """Open the model of a run folder to answer requests; it is kept, because several metrics may ask it."""
    from ablatio.training.restore import restore_model

    found = restore_model(Path(folder))
    return Responder(found.model, found.tokenizer, longest_row(found.config))


def longest_row(config: Mapping[str, Any]) -> int:
    """Largest number of tokens of a row that the model of a config reads."""
    return max(int(config["model"]["max_len"]), int(config["data"]["length"] or 0))
