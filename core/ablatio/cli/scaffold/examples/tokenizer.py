import json
from collections.abc import Iterable, Sequence

import numpy as np

from ablatio import tokenizers
from ablatio.errors import DamagedFile


@tokenizers.register("nibbles")
class Nibbles:
    """Two ids for each UTF-8 byte: its high half, 0 ... 15, and its low half, 16 ... 31; eos = 32."""

    trained = False
    vocab_size, eos = 33, 32

    def train(self, texts: Iterable[str]) -> None:
        """There is nothing to learn."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        made = []
        for text in texts:
            halves = np.frombuffer(text.encode(), dtype=np.uint8)
            made.append(np.stack([halves >> 4, (halves & 15) + 16], axis=1).reshape(-1).astype(np.uint16))
        return made

    def decode(self, ids: Sequence[int]) -> str:
        halves = [i for i in ids if i != self.eos]
        pairs = zip(halves[::2], halves[1::2], strict=False)
        return bytes((high & 15) << 4 | (low & 15) for high, low in pairs).decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 16 + [0] * 17, dtype=np.int64)  # a byte is counted at its high half

    def state(self) -> str:
        return json.dumps({"tokenizer": "nibbles"})

    def restore(self, state: str) -> None:
        if json.loads(state) != {"tokenizer": "nibbles"}:
            raise DamagedFile("this is not the state of tokenizer=nibbles")
