"""Layers that share their weights: which layer has the weights of which."""


def owners(depth: int, distinct: int | None, sharing: str) -> list[int]:
    """Number of the layer, among those with weights of their own, whose weights each of `depth` layers has.

    cycle: 0101; runs: 0011; middle, with five of seven: 0121234, so that a part of the stack is looped.
    """
    count = min(distinct or depth, depth)
    if sharing == "cycle":
        return [i % count for i in range(depth)]
    if sharing == "runs":
        return [i * count // depth for i in range(depth)]
    twice = min(depth - count, count)
    first = (count - twice) // 2
    looped = list(range(first, first + twice))
    again = [looped[i % twice] for i in range(depth - count)]
    return [*range(first + twice), *again, *range(first + twice, count)]
