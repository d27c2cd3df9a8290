"""Settings as a command line says them: `key=value`, `+key=value`, `~key`, `group@package=option`."""


def key_of(text: str) -> str:
    """`+sweep=glu_variants` -> sweep."""
    return text.lstrip("+~").partition("=")[0].partition("@")[0]


def value_of(text: str) -> str:
    """`seed=1,2` -> 1,2; empty where none is said."""
    return text.partition("=")[2]
