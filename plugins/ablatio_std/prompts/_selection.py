"""Which solved examples are shown, and in which order."""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ablatio.model.prompting.types import Example, Form, Question, TextModel
from ablatio_std.prompts._common import entropy, labels_of, probabilities

Choice = Literal["random", "knn", "diverse", "both", "gain"]
Order = Literal["random", "similar", "entropy"]
Vectors = NDArray[np.float64]
RELEVANCE = 0.5  # weight of the similarity to the question in `both`
PROBES = 8  # examples whose answers are predicted to compare orders


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1: (N, D) -> same."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def nearest(pool: Vectors, question: Vectors, count: int) -> list[int]:
    """Rows with the largest cosine to the question, the largest first (arXiv:2101.06804)."""
    return [int(i) for i in np.argsort(-(pool @ question), kind="stable")[:count]]


def diverse(pool: Vectors, count: int) -> list[int]:
    """The row nearest to the mean, then each time the one whose nearest chosen row is farthest (k-center, greedy)."""
    # A start in the middle needs no random draw; without it the first of the list would decide.
    picked = [int((pool @ pool.mean(0)).argmax())]
    while len(picked) < min(count, len(pool)):
        similarity = (pool @ pool[picked].T).max(1)
        # Two equal questions would otherwise be picked as one row twice.
        similarity[picked] = np.inf
        picked.append(int(similarity.argmin()))
    return picked


def relevant_and_diverse(pool: Vectors, question: Vectors, count: int) -> list[int]:
    """Maximal marginal relevance: similarity to the question minus that to the chosen ones (arXiv:2211.13892)."""
    picked: list[int] = []
    while len(picked) < min(count, len(pool)):
        score = RELEVANCE * (pool @ question)
        if picked:
            score = score - (1 - RELEVANCE) * (pool @ pool[picked].T).max(1)
        score[picked] = -np.inf
        picked.append(int(score.argmax()))
    return picked


class Selection:
    """The shots for questions, from one list of examples."""

    def __init__(self, llm: TextModel, form: Form, examples: Sequence[Example], choice: Choice, order: Order) -> None:
        self.form, self.examples, self.choice, self.order = form, list(examples), choice, order
        embeds = choice in ("knn", "diverse", "both") or order == "similar"
        self.vectors = unit(llm.embed([e.question for e in examples])) if embeds and examples else None
        self._even: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
        self.gains = [self._gain(llm, e) for e in examples] if choice == "gain" else []

    def shots(self, llm: TextModel, question: Question, count: int, orders: int) -> list[Example]:
        """The examples to show before a question, in their order."""
        count = min(count, len(self.examples))
        if not count:
            return []
        vector = None if self.vectors is None else unit(llm.embed([question.text]))[0]
        picked = self._picked(llm, vector, count)
        if self.order == "similar":
            assert self.vectors is not None and vector is not None
            similarity = self.vectors[picked] @ vector
            # The most similar last, next to the question, where a model attends to it most.
            picked = [picked[i] for i in np.argsort(similarity, kind="stable")]
        elif self.order == "entropy":
            # Once for all questions that see the same examples: the comparison costs hundreds of scored texts.
            key = tuple(picked), labels_of(question, self.examples)
            if key not in self._even:
                self._even[key] = self._most_even(llm, *key, orders)
            picked = self._even[key]
        else:
            llm.random("order").shuffle(picked)
        return [self.examples[i] for i in picked]

    def _picked(self, llm: TextModel, vector: Vectors | None, count: int) -> list[int]:
        if self.choice == "random":
            return llm.random("shots").sample(range(len(self.examples)), count)
        if self.choice == "gain":
            return [int(i) for i in np.argsort(-np.array(self.gains), kind="stable")[:count]]
        assert self.vectors is not None and vector is not None
        if self.choice == "knn":
            return nearest(self.vectors, vector, count)
        if self.choice == "diverse":
            return diverse(self.vectors, count)
        return relevant_and_diverse(self.vectors, vector, count)

    def _gain(self, llm: TextModel, example: Example) -> float:
        """H(uniform) - H(answers | question): how sure the model is of an example's answer (arXiv:2310.08923)."""
        # The answers of all examples, for each the same: entropies over different choices do not compare.
        labels = labels_of(Question(""), self.examples)
        chances = probabilities(llm, self.form.ask(example.question), labels)
        return float(np.log(len(labels))) - entropy(chances)

    def _most_even(self, llm: TextModel, picked: Sequence[int], labels: Sequence[str], orders: int) -> list[int]:
        """The order under which the predicted answers to other examples have the largest entropy (arXiv:2104.08786).

        The paper's GlobalE; its probes are texts that the model writes, here they are the examples that are not shown.
        """
        # A probe that is also shown would be copied; only where all are shown there is no other.
        others = [i for i in range(len(self.examples)) if i not in picked][:PROBES] or list(picked)[:PROBES]
        best, most = list(picked), -1.0
        for candidate in self._orders(llm, picked, orders):
            text = "".join(self.form.shot(self.examples[i]) for i in candidate)
            predicted = [
                int(probabilities(llm, text + self.form.ask(self.examples[i].question), labels).argmax())
                for i in others
            ]
            shares = np.bincount(predicted, minlength=len(labels)) / len(others)
            if (found := entropy(shares)) > most:
                best, most = list(candidate), found
        return best

    def _orders(self, llm: TextModel, picked: Sequence[int], most: int) -> list[tuple[int, ...]]:
        """All orders if there are at most `most` of them, else so many random ones, the given one first."""
        # More than 5 have 720 permutations and more, which are not listed to be counted.
        if len(picked) <= 5:
            every = list(itertools.permutations(picked))
            if len(every) <= most:
                return every
        rng = llm.random("orders")
        found = dict.fromkeys([tuple(picked)])
        # Random permutations repeat; 20 draws for each wanted one end the loop where hardly any new one is left.
        for _ in range(20 * most):
            if len(found) >= most:
                break
            found[tuple(rng.sample(list(picked), len(picked)))] = None
        return list(found)
