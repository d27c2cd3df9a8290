"""Advantages and losses of policy methods on batches of answers."""

from ablatio.registry.kinds import alignments
from ablatio.testing import sample_alignments as batches


def made(name, **knobs):
    """A method and a batch of answers for it."""
    method = alignments.build(name, knobs)
    return method, batches.batch("prompts", group=method.group)


def advantages(method, words):
    """What the method makes of the rewards of a batch."""
    asked = alignments[_name(method)].facts["asks"]["advantages"]
    return method.advantages(**{w: words[w] for w in asked})


def _name(method):
    return next(e.name for e in alignments if e.qualname == type(method).__qualname__)


def loss(method, words):
    """The loss, what it was given as leaves with gradients, and its metrics."""
    given = batches.leaves(words, alignments[_name(method)].facts["asks"]["loss"])
    value, metrics = method.loss(**given)
    value.backward()
    return value.detach(), given, metrics
