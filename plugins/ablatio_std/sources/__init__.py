"""Sources: text from files and the corpora that ship with ablatio; tasks that are made, with answers to be found."""

from .text import ChineseClassics, JsonLines, StateOfTheUnion, Text

__all__ = ["ChineseClassics", "JsonLines", "StateOfTheUnion", "Text"]
