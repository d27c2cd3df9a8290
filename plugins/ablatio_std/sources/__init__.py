"""Sources: text files, the corpora that ship with ablatio, conversations, preference feedback and synthetic tasks."""

from .text import ChineseClassics, JsonLines, StateOfTheUnion, Text

__all__ = ["ChineseClassics", "JsonLines", "StateOfTheUnion", "Text"]
