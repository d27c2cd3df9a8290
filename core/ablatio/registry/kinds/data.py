"""Where text comes from and how it becomes ids; the contracts are `ablatio.data`'s own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.data.chat import Template
    from ablatio.data.types import Source, Tokenizer


sources: Registry[Source] = Registry(
    "source",
    "Where documents come from.",
    methods=("documents", "fingerprint"),
    any_of=("documents", "conversations", "feedback"),
    scope="data",
    usual="sotu",
)

tokenizers: Registry[Tokenizer] = Registry(
    "tokenizer",
    "How text becomes ids.",
    methods=("train", "encode", "decode", "token_bytes", "state", "restore"),
    facts={"trained": True, "reads_folder": False},  # reads_folder: its knob `path` is a run or a model
    scope="data",
    usual="bpe",
)

templates: Registry[Template] = Registry(
    "template",
    "The form in which a conversation is written.",
    methods=("__call__",),
    facts={"signs": (), "end": ""},
    default="plain",
    scope="data",
)
