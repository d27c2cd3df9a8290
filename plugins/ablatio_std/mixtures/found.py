"""Mixtures that are found from text or by training small models: DSIR's target, DoReMi, RegMix."""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ablatio import Fraction, NonNegative, Positive, Range, mixtures
from ablatio.data.mixtures import Pool
from ablatio.errors import UserError

Width = Annotated[int, Range(4, 65536), "width of the proxy models"]
Layers = Annotated[int, Range(1, 1000), "layers of the proxy models"]
Batch = Annotated[int, Range(1, 65536), "rows per step of a proxy"]
Rate = Annotated[float, Positive, "peak learning rate of the proxies"]
Seed = Annotated[int, NonNegative, "seed of weights and random mixtures"]
_TOKEN = re.compile(r"\w+|[^\w\s]")


@mixtures.register("target", paper="arXiv:2302.03169")
class Target:
    """Shares that match a target source by importance, as DSIR weights documents.

    A text is a bag of hashed words and pairs of words.  p is the distribution of these features in the held-out text of
    the source `match`, q in the training text of all sources.  A document weighs exp(mean over its features of
    log p - log q), and a source gets a share in proportion to its training tokens times the mean weight of its
    documents.  (DSIR takes the sum instead of the mean, and so the shortest documents.)
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        match: Annotated[str, "source whose held-out text is the target; empty: the first"] = "",
        buckets: Annotated[int, Range(16, 2**24), "hashed features; DSIR takes 10,000"] = 10_000,
        documents: Annotated[int, Range(1, 10**7), "documents of each source that are read"] = 1000,
    ) -> None:
        names = [pool.name for pool in pools]
        if match and match not in names:
            raise UserError(f"mixture.match: there is no source {match!r}; the sources are {', '.join(names)}\n"
                            f"    try: mixture.match={names[0]}")  # fmt: skip
        self.pools, self.match, self.buckets, self.documents = pools, match or names[0], buckets, documents

    def shares(self) -> Mapping[str, float]:
        target = next(pool for pool in self.pools if pool.name == self.match)
        bags = {pool.name: list(self._bags(pool.texts)) for pool in self.pools}
        sizes = {pool.name: float(pool.tokens) for pool in self.pools}
        p = self._distribution([*self._bags(target.held_out)])
        # By the tokens of the sources, not of the documents read: each source is sampled with the same number of
        # documents.
        q = sum(sizes[name] * self._distribution(found) for name, found in bags.items()) / sum(sizes.values())
        ratio = np.log(p) - np.log(q)
        weights = {
            name: sizes[name] * float(np.mean([math.exp(float(ratio[bag].mean())) for bag in found]))
            for name, found in bags.items()
        }
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def _bags(self, texts: Iterable[str]) -> Iterable[NDArray[np.int64]]:
        """Features of the first documents with words, one array each."""
        left = self.documents
        for text in texts:
            if not left:
                return
            if len(found := self._features(text)):
                left -= 1
                yield found

    def _features(self, text: str) -> NDArray[np.int64]:
        words = _TOKEN.findall(text.lower())
        grams = [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
        digests = (hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest() for gram in grams)
        return np.fromiter((int.from_bytes(d, "big") % self.buckets for d in digests), dtype=np.int64)

    def _distribution(self, bags: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
        """Frequencies of the features, each counted once more than it occurs."""
        # One more than counted, so that no feature has the probability 0 and an infinite ratio.
        counts = np.ones(self.buckets)
        for bag in bags:
            counts += np.bincount(bag, minlength=self.buckets)
        return counts / counts.sum()


@mixtures.register("doremi", paper="arXiv:2305.10429")
class DoReMi:
    """DoReMi: a proxy is trained against a reference under group DRO; the shares are the mean of its domain weights.

    The reference is trained on shares in proportion to the tokens.  At each step t the excess losses of the domains,
    lambda_i = mean over tokens of max(l_proxy - l_reference, 0), move the weights of the proxy's loss:
    alpha_i <- alpha_i exp(eta lambda_i), normalized; alpha <- (1 - c) alpha + c / k.
    """

    trains = True

    def __init__(
        self,
        pools: Sequence[Pool],
        proxies: Any,
        *,
        eta: Annotated[float, Positive, "step size of the weights"] = 1.0,
        smoothing: Annotated[float, Fraction, "c: share of equal weights in each step"] = 1e-3,
        width: Width = 64,
        layers: Layers = 2,
        steps: Annotated[int, Range(1, 10**7), "steps of the reference and of the proxy"] = 300,
        batch: Batch = 16,
        lr: Rate = 3e-3,
        seed: Seed = 0,
    ) -> None:
        self.pools, self.proxies, self.eta, self.smoothing, self.batch = pools, proxies, eta, smoothing, batch
        self.model = {"width": width, "layers": layers, "steps": steps, "lr": lr, "seed": seed}

    def shares(self) -> Mapping[str, float]:
        names = [pool.name for pool in self.pools]
        total = sum(pool.tokens for pool in self.pools)
        base = {pool.name: pool.tokens / total for pool in self.pools}
        reference = self.proxies.start(**self.model).train(base, self.batch)
        proxy = self.proxies.start(**self.model)
        alpha, mean = torch.full((len(names),), 1 / len(names)), torch.zeros(len(names))
        for step in range(self.model["steps"]):
            rows = [proxy.rows(name, max(1, self.batch // len(names))) for name in names]
            # Clipped token by token, as in the paper: easy tokens below the reference do not pay for hard ones.
            excess = [(proxy.token_losses(r) - reference.token_losses(r)).clamp(min=0).mean() for r in rows]
            alpha = reweighted(alpha, torch.stack(excess), self.eta, self.smoothing)
            # The weights of this step act on the same rows, without a gradient through them.
            losses = torch.stack([proxy.loss(r) for r in rows])
            # Domains are drawn evenly and weighted by alpha in the loss, as in the paper: drawing by alpha would leave
            # noisy excess losses of rare ones.
            proxy.update((alpha * losses).sum(), step)
            mean += alpha / self.model["steps"]
        found = (mean.double() / mean.double().sum()).tolist()
        return dict(zip(names, found, strict=True))


def reweighted(alpha: torch.Tensor, excess: torch.Tensor, eta: float, smoothing: float) -> torch.Tensor:
    """One exponentiated-gradient step of the domain weights: (k,), (k,) -> (k,)."""
    # The maximum cancels in the normalization and keeps exp from overflowing.
    moved = alpha * torch.exp(eta * (excess - excess.max()))
    return (1 - smoothing) * moved / moved.sum() + smoothing / len(alpha)


@mixtures.register("regmix", paper="arXiv:2407.01492")
class RegMix:
    """RegMix: proxies on random mixtures, a regression of their loss on the shares, and the best of many mixtures.

    Mixtures are Dirichlet draws around the sizes of the sources, their concentration between 0.1 and 5.  The loss is
    that on the held-out text of `match`, or the mean over all sources.  A ridge regression on shares and, with
    `quadratic`, on their products predicts it; of `candidates` further draws, the mean of the best `top` is taken.
    """

    trains = True

    def __init__(
        self,
        pools: Sequence[Pool],
        proxies: Any,
        *,
        match: Annotated[str, "source whose held-out loss is minimized; empty: the mean over all"] = "",
        runs: Annotated[int, Range(2, 10_000), "proxies that are trained; RegMix takes 512"] = 16,
        features: Annotated[Literal["linear", "quadratic"], "of the shares, for the regression"] = "quadratic",
        ridge: Annotated[float, NonNegative, "penalty on squared coefficients"] = 1e-3,
        candidates: Annotated[int, Range(1, 10**7), "mixtures that the regression is asked about"] = 10_000,
        top: Annotated[int, Range(1, 10**6), "best of them that are averaged"] = 100,
        width: Width = 64,
        layers: Layers = 2,
        steps: Annotated[int, Range(1, 10**7), "steps of each proxy"] = 100,
        batch: Batch = 16,
        lr: Rate = 3e-3,
        seed: Seed = 0,
    ) -> None:
        self.names = [pool.name for pool in pools]
        if match and match not in self.names:
            raise UserError(f"mixture.match: there is no source {match!r}; the sources are {', '.join(self.names)}\n"
                            f"    try: mixture.match={self.names[0]}")  # fmt: skip
        self.pools, self.proxies, self.match, self.runs, self.features = pools, proxies, match, runs, features
        self.ridge, self.candidates, self.top, self.batch, self.seed = ridge, candidates, top, batch, seed
        self.model = {"width": width, "layers": layers, "steps": steps, "lr": lr, "seed": seed}

    def shares(self) -> Mapping[str, float]:
        rng = np.random.Generator(np.random.PCG64([self.seed, 0x72656D]))
        tried = self._draw(rng, self.runs)
        found = regression(tried, np.asarray([self._loss(row) for row in tried]), self.features, self.ridge)
        asked = self._draw(rng, self.candidates)
        best = asked[np.argsort(found(asked), kind="stable")[: self.top]].mean(0)
        return dict(zip(self.names, (best / best.sum()).tolist(), strict=True))

    def _draw(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Random mixtures: (count, S)."""
        sizes = np.asarray([pool.tokens for pool in self.pools], dtype=np.float64)
        # Log-uniform: mixtures near a single source and mixtures near the sizes are drawn alike.
        strengths = np.exp(rng.uniform(math.log(0.1), math.log(5.0), count)) * len(sizes)
        # Dirichlet parameters must be positive: a tiny source has almost none.
        return np.asarray([rng.dirichlet(np.maximum(1e-3, s * sizes / sizes.sum())) for s in strengths])

    def _loss(self, shares: NDArray[np.float64]) -> float:
        mixture = dict(zip(self.names, shares.tolist(), strict=True))
        losses = self.proxies.start(**self.model).train(mixture, self.batch).held_out()
        return float(losses[self.match] if self.match else np.mean([*losses.values()]))


def regression(x: NDArray[np.float64], y: NDArray[np.float64], features: str, ridge: float) -> Any:
    """Ridge regression of y (n,) on shares (n, S), as a function of shares: its constant is not penalized."""
    first, second = np.triu_indices(x.shape[1])

    def expanded(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        products = shares[:, first] * shares[:, second]
        return np.concatenate([shares, products], axis=1) if features == "quadratic" else shares

    rows = expanded(x)
    center, level = rows.mean(0), y.mean()
    # Centered, so that the constant has no penalty. Shares sum to 1, so without a ridge the matrix is singular: at
    # least 1e-12.
    gram = (rows - center).T @ (rows - center) + max(ridge, 1e-12) * np.eye(rows.shape[1])
    weights = np.linalg.solve(gram, (rows - center).T @ (y - level))
    return lambda shares: level + (expanded(shares) - center) @ weights
