"""Key and value of a setting on the command line: `key=value`, `+key=value`, `~key`, `group@package=option`."""


def key_of(text: str) -> str:
    """The key of a setting: `+sweep=glu_variants` gives `sweep`."""
    return text.lstrip("+~").partition("=")[0].partition("@")[0]


def value_of(text: str) -> str:
    """The value of a setting: `seed=1,2` gives `1,2`; empty if it has none."""
    return text.partition("=")[2]
