"""Continuations that must be one of a given list: which tokens may follow."""

from collections.abc import Iterable, Sequence


class Choices:
    """Prefix tree of the allowed continuations (arXiv:2010.00904, section 3.2)."""

    def __init__(self, choices: Iterable[Sequence[int]]) -> None:
        self.root: dict[int | None, dict] = {}  # type: ignore[type-arg]  # a node: {token: node}; None ends a choice
        for choice in choices:
            node = self.root
            for token in choice:
                node = node.setdefault(token, {})
            node[None] = {}

    def after(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Return the tokens that may follow `ids`, and whether `ids` is a complete choice."""
        node = self.root
        for token in ids:
            node = node[token]
        return [token for token in node if token is not None], None in node
