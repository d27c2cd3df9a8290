"""Scoring a model without training it."""

from ablatio.registry.kinds import tasks

from .pretrain import Pretrain


@tasks.register("evaluate", paper="arXiv:2405.14782")
class Evaluate(Pretrain):
    """Score a model as it is: -log p of the source's held-out text, and what `eval` and `metric` measure.

    No step is trained, so a sweep over `model.path`, `quantization`, `decode` or `prompt` compares finished models, or
    ways to ask one: `model.start=run model.path=RUN`, or a transformers folder with `model.start=hf`.
    """

    trains, reads = False, ("decode", "prompt")
