"""Which arms a sweep runs: factorials, screening designs, samples of a space, searches."""
