"""BLEU and chrF of random answers against SacreBLEU."""

import random

import pytest
import sacrebleu

from ablatio import metrics
from ablatio.data.items import Item, Response, Scored

WORDS = (
    "The", "cat,", "sat", "on", "a", "mat!", "dogs", "don't", "run", "3.5", "times", "(quickly)", "in", "the", "U.S.",
    "park", "--", "today;", "über", "naïve", "3,000",
)  # fmt: skip


def _scored(draw: random.Random) -> list[Scored]:
    """Answers of 0 to 12 words, some of them close to one of their references."""
    found = []
    for number in range(draw.randint(1, 6)):
        answer = draw.choices(WORDS, k=draw.randint(0, 12))
        near = answer + draw.choices(WORDS, k=2)
        references = [" ".join(draw.choice([near, draw.choices(WORDS, k=draw.randint(1, 12))])) for _ in range(2)]
        item = Item(str(number), "q", references[0], references=(references[1],))
        found.append(Scored(item, [Response(texts=(" ".join(answer),))], {}))
    return found


@pytest.mark.oracle("metric=bleu", "SacreBLEU's corpus_bleu without smoothing, two references")
@pytest.mark.oracle("metric=chrf", "SacreBLEU's corpus_chrf, two references")
@pytest.mark.parametrize("seed", range(40))
def test_random_answers(seed: int) -> None:
    scored = _scored(random.Random(seed))
    answers = [s.responses[0].texts[0] for s in scored]
    columns = [[s.item.correct_answers[k] for s in scored] for k in range(2)]
    bleu = sacrebleu.corpus_bleu(answers, columns, smooth_method="none").score / 100
    assert metrics.build("bleu", {}).summary(scored)["bleu"] == pytest.approx(bleu, abs=1e-6)
    chrf = sacrebleu.corpus_chrf(answers, columns).score / 100
    assert metrics.build("chrf", {}).summary(scored)["chrf"] == pytest.approx(chrf, abs=1e-9)
