"""Studies of the pages start warm (helpers/warm_pools.py)."""

from helpers.warm_pools import warm_pools  # noqa: F401  (fixture)
