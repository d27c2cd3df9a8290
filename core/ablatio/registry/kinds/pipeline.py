"""Kinds of the data pipeline: filters of documents, mixtures of sources, curricula over training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.data.documents import Verdict


class Filter(Protocol):
    """Decides which training documents are kept, and may change their text; held-out documents are never filtered.

    The calls for a text are `measure` in a worker process, then `judge` in the main process, in the order of the
    documents.  So the outcome does not depend on the number of workers.  A filter must support pickle after `fit`.

    Methods:
    judge(text, measure)  a Verdict (ablatio.data.filters): the text to keep, or None with the reason.  May keep state
                          about earlier documents, such as an index of duplicates

    Optional methods:
    fit(texts)       learns from the training texts that the filters before this one kept; `texts` can be read again
    avoid(texts)     takes the held-out texts (in a mixture, of all sources), which the training text must not contain
    measure(text)    the expensive part: a plain value that depends on the text and on what `fit` learned only
    plan(measures)   takes the measures of all documents, in order, before the first is judged
    fingerprint()    a hash of files that it reads, for the cache of filtered documents

    Facts:
    fitted             True if it learns from the training text: it defines `fit`
    changes_text       True if it may change a text that it keeps
    order_independent  True if the same texts are kept for any order of the documents
    """

    fitted: ClassVar[bool]
    changes_text: ClassVar[bool]
    order_independent: ClassVar[bool]

    def judge(self, text: str, measure: Any) -> Verdict: ...


class FilterMethods(Protocol):
    """Optional methods of a Filter."""

    def fit(self, texts: Iterable[str]) -> None: ...

    def avoid(self, texts: Iterable[str]) -> None: ...

    def measure(self, text: str) -> Any: ...

    def plan(self, measures: Sequence[Any]) -> None: ...

    def fingerprint(self) -> str: ...


class Mixture(Protocol):
    """Shares of the training rows that are drawn from each of several sources.

    Wiring:
    pools      one ablatio.data.mixtures.Pool per source: name, training tokens, texts of both splits
    proxies    trains small models on mixtures of the pools (ablatio.training.proxies.Proxies)

    Methods:
    shares()   {source: share}, positive or 0, with the sum 1; called once, before training

    Facts:
    trains     True if it trains proxy models: its shares are kept in the cache
    """

    trains: ClassVar[bool]

    def shares(self) -> Mapping[str, float]: ...


class MixtureMethods(Protocol):
    """Optional members of a Mixture.

    Optional attributes:
    weights    shares in the order of the sources, of which a schedule gives others during training
    """

    weights: Sequence[float]


class Curriculum(Protocol):
    """Changes the data over training: which sources rows are drawn from, and how difficult they are.

    A pure function of the progress, so that a resumed run draws the same rows.

    Wiring:
    names      names of the sources, in order

    Methods, at least one:
    shares(progress, base)  shares of the sources at a place of training, 0 (start) to 1 (end); `base` and the result
                            are {source: share} with the sum 1
    easiest(progress)       share of the rows, ordered by `difficulty` of their text, that are drawn from: (0, 1]
    difficulty(text)        a number that grows with the difficulty of a text
    """


class CurriculumMethods(Protocol):
    """Optional methods of a Curriculum."""

    def shares(self, progress: float, base: Mapping[str, float]) -> Mapping[str, float]: ...

    def easiest(self, progress: float) -> float: ...

    def difficulty(self, text: str) -> float: ...


filters: Registry[Filter] = Registry(
    "filter",
    "Which documents are trained on, and what is removed from them; several run one after the other.",
    contract=(Filter, FilterMethods),
    methods=("judge",),
    facts={"fitted": False, "changes_text": False, "order_independent": True},
    multiple=True,
    ordered=True,
    scope="data",
)

mixtures: Registry[Mixture] = Registry(
    "mixture",
    "How often each of several sources is drawn from.",
    contract=(Mixture, MixtureMethods),
    wiring=("pools", "proxies"),
    methods=("shares",),
    facts={"trains": False},
    optional=True,
    scope="data",
)

curricula: Registry[Curriculum] = Registry(
    "curriculum",
    "How the data change over training: sources, or the difficulty of texts.",
    contract=(Curriculum, CurriculumMethods),
    wiring=("names",),
    any_of=("shares", "easiest"),
    optional=True,
    scope="data",
)
