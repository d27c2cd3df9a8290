"""Sources: text files, the corpora that ship with ablatio, conversations, preference feedback and synthetic tasks."""

from .files import JsonLines
from .text import ChineseClassics, StateOfTheUnion, Text

__all__ = ["ChineseClassics", "JsonLines", "StateOfTheUnion", "Text"]
