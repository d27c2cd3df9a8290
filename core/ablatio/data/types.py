"""Contracts of the data layer: documents, sources, tokenizers, conversations and feedback."""

from typing import Any

import numpy as np

from ablatio.data.documents import Conversation as Conversation
from ablatio.data.documents import Document as Document
from ablatio.data.documents import Feedback as Feedback
from ablatio.data.documents import Ids as Ids
from ablatio.data.documents import Message as Message
from ablatio.data.documents import Role as Role
from ablatio.data.documents import Split as Split
from ablatio.registry.kinds.data import Source as Source
from ablatio.registry.kinds.data import Tokenizer as Tokenizer


def token_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest dtype that holds every id: uint16 up to 65536 ids, else uint32."""
    # Half the disk and the memory traffic for most vocabularies; the batches are cast to int64.
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def start_id(tokenizer: Tokenizer) -> int:
    """Return the id that opens each text: the tokenizer's own bos where it puts one there, else its eos."""
    return int(getattr(tokenizer, "bos", tokenizer.eos))
