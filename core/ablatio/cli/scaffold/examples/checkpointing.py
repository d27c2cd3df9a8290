from ablatio import checkpointings
from ablatio.model.activation_checkpointing import recompute
from ablatio.model.language_model import LanguageModel


@checkpointings.register("pairs", paper="arXiv:1604.06174")
class Pairs:
    """Keep the residual stream before every second layer, (B, T, D), and compute the rest once more."""

    def apply(self, model: LanguageModel) -> None:
        recompute(model, segment=2)
