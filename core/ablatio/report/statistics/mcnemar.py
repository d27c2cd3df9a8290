"""McNemar's test of two paired proportions: which of the items that one answers correctly does the other fail?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Discordance:
    """Items on which two models differ.

    first   correct for the first alone
    second  correct for the second alone
    p       two-sided; 1 if no item differs
    """

    first: int
    second: int
    p: float


def mcnemar(first: int, second: int) -> Discordance:
    """Test that a discordant item is equally likely to be correct for either model (McNemar 1947).

    The mid-p binomial test: 2 P(X < k) + P(X = k), X ~ Binomial(n, 1/2), k the smaller of the two counts and n their
    sum.  It keeps the level on average and is less conservative than the exact test (doi:10.1186/1471-2288-13-91).
    """
    from scipy import stats

    n, k = first + second, min(first, second)
    if n == 0:
        return Discordance(first, second, 1.0)
    law = stats.binom(n, 0.5)
    p = 2 * float(law.cdf(k)) - float(law.pmf(k))
    return Discordance(first, second, min(1.0, p))
