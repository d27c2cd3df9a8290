"""A trained model as a writer of text, for sources whose texts a model of ours writes."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.data.data_files import content_digest, readable
from ablatio.errors import UserError
from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.run_folder import CHECKPOINTS, read_run

if TYPE_CHECKING:
    from ablatio.training.restore import RestoredModel

AT_ONCE = 32  # prompts that are continued together


class TextWriter:
    """The model of a run folder, with the weights of its newest checkpoint; loaded at the first text.

    digest  a sha256 of weights and tokenizer: equal writers give equal texts for a seed
    """

    def __init__(self, folder: Path) -> None:
        read_run(folder)  # UserError if it is no run
        step = Checkpoints(folder / CHECKPOINTS).latest()
        files = sorted((folder / CHECKPOINTS).glob(f"step-{step or 0:08d}*.model.safetensors"))
        if step is None or not files:
            raise UserError(f"{folder} has no checkpoint yet\n    try: ablatio train resume={folder}")
        self.folder, self.step = folder, step
        total = hashlib.sha256()
        for file in (*files, folder / "tokenizer.json"):
            with readable(file):
                total.update(content_digest(file).encode())
        self.digest = total.hexdigest()

    @cached_property
    def _model(self) -> "RestoredModel":
        from ablatio.training.restore import restore_model

        return restore_model(self.folder, self.step)

    def longest(self, tokens: int) -> int:
        """Number of prompt tokens that leave room for `tokens` new ones."""
        return max(1, int(self._model.config["model"]["max_len"]) - tokens - 1)

    def size(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._model.tokenizer.encode([text])[0])

    def __call__(self, prompts: Sequence[str], tokens: int, temperature: float, seed: int) -> list[str]:
        """Continue each prompt by up to `tokens` tokens; the end of a prompt that is too long is used."""
        from ablatio.data.types import start_id
        from ablatio.model.decoding.generate import Sampling, generate

        tokenizer, found = self._model.tokenizer, list[str]()
        room, start = self.longest(tokens), start_id(tokenizer)
        for first in range(0, len(prompts), AT_ONCE):
            rows = [[start, *map(int, ids)][-room - 1 :] for ids in tokenizer.encode(prompts[first : first + AT_ONCE])]
            sampling = Sampling(temperature, top_p=1.0 if temperature == 0 else 0.95, seed=seed + first)
            for new in generate(self._model.model, rows, tokens, sampling, stop=tokenizer.eos):
                new = new[: new.index(start)] if start in new else new
                found.append(tokenizer.decode([i for i in new if i < tokenizer.vocab_size]))
        return found


def open_writer(path: str) -> TextWriter:
    """Open the run at `path` as a writer. Raises UserError if there is none."""
    if not path:
        raise UserError(
            "source.run is empty: expected the folder of a run whose model writes the texts\n"
            "    try: source.run=runs/NAME, after ablatio train name=NAME"
        )
    return TextWriter(Path(path).expanduser())
