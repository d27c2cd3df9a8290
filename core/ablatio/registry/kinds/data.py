"""Registries of data kinds: sources, tokenizers and chat templates.

Their protocols are Source and Tokenizer in ablatio.data.types and Template in ablatio.data.chat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.data.chat import Template
    from ablatio.data.types import Source, Tokenizer


sources: Registry[Source] = Registry(
    "source",
    "Where documents, conversations or preference feedback are read from.",
    methods=("documents", "fingerprint"),
    any_of=("documents", "conversations", "feedback"),
    scope="data",
    usual="sotu",
)

tokenizers: Registry[Tokenizer] = Registry(
    "tokenizer",
    "How text is split into token ids.",
    methods=("train", "encode", "decode", "token_bytes", "state", "restore"),
    facts={"trained": True, "reads_folder": False},  # reads_folder: its knob `path` is a run or a model
    scope="data",
    usual="bpe",
)

templates: Registry[Template] = Registry(
    "template",
    "How a conversation is written as text: the chat template.",
    methods=("__call__",),
    facts={"signs": (), "end": "", "tools": False},  # tools: it has a form for tools, their calls and their results
    default="plain",
    scope="data",
)
