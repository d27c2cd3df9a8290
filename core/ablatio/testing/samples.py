"""Parts made by themselves, with plausible wiring, and the inputs that the suites hand them."""

import atexit
import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablatio.data.types import Document
from ablatio.errors import UserError
from ablatio.model.assembly import Assembly
from ablatio.model.context import Context, make_context
from ablatio.model.roles import ParameterGroup
from ablatio.registry import REGISTRIES, Entry
from ablatio.testing import tiny

Knobs = Mapping[str, Any]
HEADS, WIDTH = 4, 8
TEXTS = (
    "",
    " ",
    "the quick brown fox, the lazy dog",
    "  two  spaces and a tab\tand a line\r\nand one more\n\n",
    "Größe, naïve, Ελληνικά, кириллица, 日本語, العربية, हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\ufeff\u202e zero width and marks",
    "\x00\x01\x1b[31m controls \x7f",
    "<|endoftext|> <s> </s> <eos> [CLS] [PAD] <unk> look like signs and are text",
    "1234567890 3.14159 -1e-9 0xdeadbeef",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 8,
    "\U0001f600\U0010ffff\ud7ff\ue000",
)


def made(entry: Entry, knobs: Knobs | None = None, **wiring: Any) -> Any:
    """The part, made as the model makes it."""
    return REGISTRIES[entry.kind].build(entry.name, knobs, **wiring)


def activation(entry: Entry, knobs: Knobs | None = None, *, d_ff: int, dtype: torch.dtype = torch.float32) -> Any:
    part = made(entry, knobs, d_ff=d_ff)
    return part.to(dtype) if isinstance(part, nn.Module) else part


def position(
    entry: Entry, knobs: Knobs | None = None, *, causal: bool = True, dtype: torch.dtype = torch.float64, **sizes: int
) -> Any:
    plain = {"d_model": HEADS * WIDTH, "d_head": WIDTH, "n_heads": HEADS, "n_layers": 2, "max_len": 32}
    part = made(entry, knobs, causal=causal, **plain | sizes)
    return part.to(dtype) if isinstance(part, nn.Module) else part


def use_position(
    entry: Entry, part: Any, pos: Tensor, dtype: torch.dtype = torch.float64, width: int = WIDTH
) -> dict[str, Any]:
    """All that a position gives at `pos` (T,) or (B, T) to heads of this width: method -> output."""
    rows, length = (pos.shape[0] if pos.dim() == 2 else 2), pos.shape[-1]
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found: dict[str, Any] = {}
    for method in entry.facts["uses"]:
        x = random(1, length, HEADS * width).expand(rows, -1, -1)
        q, k = (random(1, HEADS, length, width).expand(rows, -1, -1, -1) for _ in "qk")
        arguments = {"embed": (x, pos), "rotate": (q, k, pos), "bias": (pos, pos), "score": (q, k, pos, pos)}
        found[method] = getattr(part, method)(*arguments[method])
    return found


def sublayer(entry: Entry, knobs: Knobs | None = None, **sizes: Any) -> tuple[nn.Module, Context, int]:
    """An attention, mlp or block of its own; a context of 3 tokens; the width of its input.  In float64."""
    config = tiny.config(entry, knobs, **{"d_model": 16, "n_heads": 4, **sizes})
    assembly = Assembly(config, tiny.VOCAB)
    made_by = {
        "attention": lambda: assembly.attention(0, "part"),
        "mlp": lambda: assembly.mlp(0, "part"),
        "block": lambda: assembly.block(0),
    }
    place = assembly.position(causal=True)
    place = place.double() if isinstance(place, nn.Module) else place
    ctx = make_context(torch.ones(2, 3, dtype=torch.long), place, "causal", None, None, torch.float64)
    return made_by[entry.kind]().double(), ctx, 16


def objective(entry: Entry, knobs: Knobs | None = None, max_len: int = 32) -> Any:
    part = made(entry, knobs, vocab_size=tiny.VOCAB, eos=0, max_len=max_len)
    if hasattr(part, "learn_from"):  # from another model than those that suites make
        part.learn_from(tiny.model(seed=7, max_len=max_len))
    return part


def schedule(entry: Entry, knobs: Knobs | None = None, scores: Sequence[float] = ()) -> Callable[[int, int], float]:
    """A schedule in a run whose held-out losses up to now are `scores`."""
    part = made(entry, knobs)
    return (lambda step, total: part(step, total, scores)) if entry.facts["watches"] else part


def token_rows(rows: int = 3, length: int = 33) -> tuple[Tensor, Tensor]:
    """Tokens (B, T + 1) and the documents packed in them: eos opens each; every id stands somewhere."""
    order = torch.randperm(rows * length, generator=torch.Generator().manual_seed(5))
    tokens, starts = (order % (tiny.VOCAB - 1) + 1).view(rows, length), torch.zeros(rows, length, dtype=torch.long)
    for row, places in enumerate(([0, 9, 20], [0], [0, 31])[:rows]):
        starts[row, places] = 1
    tokens[starts.bool()] = 0
    return tokens, starts.cumsum(1) - 1


def groups(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[ParameterGroup]:
    """Parameters of each role."""
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype))

    return [
        {"params": [parameter(8, 6), parameter(6, 12)], "role": "matrix", "rate": 1.0},
        {"params": [parameter(6), parameter(12)], "role": "vector", "rate": 1.0},
        {"params": [parameter(10, 6)], "role": "embedding", "rate": 1.0},
        {"params": [parameter(10, 6)], "role": "head", "rate": 1.0},
    ]


def parameters(of: Iterable[ParameterGroup]) -> list[nn.Parameter]:
    return [p for group in of for p in group["params"]]


@functools.cache
def _sample_files() -> list[Path]:
    """A few documents in the formats that sources read; the folder lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="ablatio-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paragraphs = [f"Document {i}.\n\n{text * 3}" for i, text in enumerate(TEXTS[2:5])]
    text, rows = folder / "sample.txt", folder / "sample.jsonl"
    text.write_text("\n\n\n".join(paragraphs), encoding="utf-8")
    lines = [json.dumps({"text": p, "id": str(i)}, ensure_ascii=False) for i, p in enumerate(paragraphs)]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [text, rows, folder]


def source(entry: Entry, knobs: Knobs | None = None) -> Any:
    """A source; one with a knob `path` reads the first generated file that it accepts (text, JSON lines, a folder)."""
    knob = entry.knob("path")
    given = dict(knobs or {})
    if knob is None or given.get("path", knob.default) != knob.default:
        return made(entry, given)
    problems = []
    for path in _sample_files():
        value = [str(path)] if knob.length is not None else str(path)
        part = made(entry, given | {"path": value})
        try:
            next(iter(part.documents()))
        except (UserError, StopIteration) as error:
            problems.append(f"{path.name}: {error}")
        else:
            return part
    raise UserError("no generated file could be read:\n" + "\n".join(problems))


def first_documents(part: Any, count: int = 50) -> Iterator[Document]:
    return itertools.islice(part.documents(), count)


def tokenizer(entry: Entry, knobs: Knobs | None = None) -> Any:
    """A tokenizer, trained on the samples if it has to be."""
    part = made(entry, knobs)
    if entry.facts["trained"]:
        part.train([text * 20 for text in TEXTS])
    return part
