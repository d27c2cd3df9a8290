"""Speed of tokenizing a corpus: ours, `map` of datasets and datatrove, one tokenizer on one text, MB/s a core.

    python benchmarks/data.py [--megabytes 20] [--workers 1] [--turns 5] [--json FILE]

Text is made once: State of the Union messages, with the words of each document in a new order. All read the same
Parquet files (one per worker), encode each document with the same byte-level BPE of 2048 ids, which opens it with the
end-of-document token, and write the tokens of two bytes and the places of the documents to disk:

    ours       two memory-mapped streams with digests, in its cache
    datasets   Arrow, by `map(batched=True)` with tokenizers' `encode_batch` on as many processes
    datatrove  ParquetReader and DocumentTokenizer in a LocalPipelineExecutor with one task per file; its default, to
               shuffle the documents and copy the tokens a second time, is left out, since nobody else does it

All else is their default; batches of 4 to 10,000 documents change the time of either by less than a tenth. Each process
encodes in one thread (TOKENIZERS_PARALLELISM=false), since threads that share a core make the peers slower. Contenders
take turns (A B C A B C ...), each in a process of its own; time is the CPU time of that process and its workers after
the imports, and a ratio is the median over the turns of theirs / ours. What was written is read back and must be the
same: as many documents, and each id as often. `--only ours` prepares the text and prints time and peak memory, for
large corpora: `--megabytes 10000 --only ours`.
"""

import argparse
import contextlib
import hashlib
import importlib
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PIECE = 4000  # characters of a document
VOCABULARY = 2048

Written = tuple[int, Iterable[Any]]  # number of documents, and all ids that were written, in arrays


def documents(megabytes: float) -> Iterator[str]:
    """Documents of about `PIECE` characters with the words of the messages, `megabytes` in all."""
    from ablatio import sources

    texts = [document.text for document in sources.build("sotu", {"since": 1900}).documents()]
    draw, made = random.Random(0), 0.0
    while made < megabytes * 1e6:
        text = draw.choice(texts)
        start = draw.randrange(max(1, len(text) - PIECE))
        words = text[start : start + PIECE].split(" ")
        draw.shuffle(words)
        piece = " ".join(words)
        made += len(piece.encode())
        yield piece


def write(folder: Path, megabytes: float, files: int) -> int:
    """Write the documents as Parquet `files` and a trained tokenizer; return their bytes."""
    import pyarrow
    import pyarrow.parquet

    from ablatio import sources, tokenizers

    size, schema = 0, pyarrow.schema([("text", pyarrow.string())])
    (folder / "text").mkdir()
    with contextlib.ExitStack() as opened:
        names = [folder / "text" / f"{number:05d}.parquet" for number in range(files)]
        targets = [opened.enter_context(pyarrow.parquet.ParquetWriter(name, schema)) for name in names]
        texts = documents(megabytes)
        for target in itertools.cycle(targets):
            if not (batch := list(itertools.islice(texts, 1000))):
                break
            size += sum(len(text.encode()) for text in batch)
            target.write_table(pyarrow.table({"text": batch}, schema=schema))
    made: Any = tokenizers.build("bpe", {"vocab_size": VOCABULARY})
    made.train(document.text for document in sources.build("sotu", {"since": 1980}).documents())
    made.fast("<end>").save(str(folder / "tokenizer.json"))
    (folder / "state.json").write_text(made.state())
    return size


def ours(folder: Path, out: Path, workers: int) -> Callable[[], Written]:
    """Prepare the corpus in an empty cache; return what reads it back."""
    from ablatio import sources, tokenizers
    from ablatio.data.corpus import prepare
    from ablatio.data.shards import Resources

    made: Any = tokenizers.build("bpe", {"vocab_size": VOCABULARY})
    made.restore((folder / "state.json").read_text())
    made.trained = False
    source: Any = sources.build("parquet", {"path": str(folder / "text")})
    corpus = prepare(source, made, "bpe", out, 0.02, Resources(workers))
    number = len(corpus.train_starts) + len(corpus.validation_starts)
    return lambda: (number, (corpus.train, corpus.validation))


def by_datasets(folder: Path, out: Path, workers: int) -> Callable[[], Written]:
    """The same with datasets' `map`."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": [found.ids for found in model.encode_batch(batch["text"])]}

    files = [str(file) for file in sorted((folder / "text").iterdir())]
    data = datasets.Dataset.from_parquet(files, cache_dir=str(out))
    made = data.map(
        encode, batched=True, remove_columns=["text"],
        features=datasets.Features({"ids": datasets.Sequence(datasets.Value("uint16"))}),
        num_proc=workers if workers > 1 else None,
    )  # fmt: skip
    return lambda: (len(made), (rows["ids"].combine_chunks().values for rows in made.with_format("arrow").iter(1000)))


def by_datatrove(folder: Path, out: Path, workers: int) -> Callable[[], Written]:
    """The same with datatrove's DocumentTokenizer."""
    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        ParquetReader(str(folder / "text")),
        DocumentTokenizer(str(out / "tokens"), str(folder / "tokenizer.json"), shuffle_documents=False),
    ]
    # Forked, since the CPU time of a fork server's processes would not be counted.
    LocalPipelineExecutor(
        steps, tasks=workers, workers=workers, logging_dir=str(out / "logs"), start_method="fork"
    ).run()

    def written() -> Written:
        found = [file for file in sorted((out / "tokens").glob("*.ds")) if file.stat().st_size]
        number = sum(file.with_name(file.name + ".index").stat().st_size // 8 for file in found)
        return number, (np.memmap(file, dtype=np.uint16, mode="r") for file in found)

    return written


CONTENDERS = {
    "ours": (ours, "ablatio.data.corpus"),
    "datasets": (by_datasets, "datasets"),
    "datatrove": (by_datatrove, "datatrove.pipeline.tokens"),
}


def run(who: str, folder: Path, workers: int) -> dict[str, Any]:
    """One turn in a process of its own: seconds on the clock, CPU seconds, what was written, peak MiB of a process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--child", who, str(folder), out, "--workers", str(workers)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{who}: {done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def child(who: str, folder: Path, out: Path, workers: int) -> None:
    """Do the work; print its times without imports, what it wrote, and peak MiB of the process and of a worker."""
    import numpy as np

    work, module = CONTENDERS[who]
    importlib.import_module(module)
    both, begin = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN), time.perf_counter()
    before = sum(resource.getrusage(of).ru_utime + resource.getrusage(of).ru_stime for of in both)
    written = work(folder, out, workers)
    cpu = sum(resource.getrusage(of).ru_utime + resource.getrusage(of).ru_stime for of in both) - before
    peak, worker = (resource.getrusage(of).ru_maxrss / 1024 for of in both)
    seconds = time.perf_counter() - begin
    number, arrays = written()
    often = np.zeros(VOCABULARY, dtype=np.int64)
    for ids in arrays:
        for start in range(0, len(ids), 1 << 20):
            often += np.bincount(ids[start : start + (1 << 20)], minlength=VOCABULARY)
    print(
        json.dumps({
            "seconds": seconds, "cpu": cpu, "documents": number, "tokens": int(often.sum()),
            "ids": hashlib.sha256(often.tobytes()).hexdigest(),
            "peak": peak, "worker_peak": worker,
        })
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=tuple(CONTENDERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]), args.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), args.megabytes, args.workers)
        names = (args.only,) if args.only else tuple(CONTENDERS)
        turns = [{name: run(name, Path(folder), args.workers) for name in names} for _ in range(args.turns)]
    counted = [{key: made[key] for key in ("documents", "tokens", "ids")} for turn in turns for made in turn.values()]
    if any(other != counted[0] for other in counted):
        raise SystemExit(f"not the same tokens: {dict(zip(names, counted, strict=False))}")
    found: dict[str, Any] = {"megabytes": size / 1e6, "workers": args.workers, "turns": args.turns, **counted[0]}
    del found["ids"]
    for name in names:
        keys = ("seconds", "cpu", "peak", "worker_peak")
        middle = {key: statistics.median(turn[name][key] for turn in turns) for key in keys}
        found[name] = middle | {"mb_per_cpu_second": size / 1e6 / middle["cpu"]}
        print(
            f"{name:<9} {found[name]['mb_per_cpu_second']:6.2f} MB per CPU second, {middle['seconds']:7.1f} s, "
            f"{found['tokens']:,} tokens, peak {middle['peak']:.0f} MiB, worker {middle['worker_peak']:.0f} MiB"
        )
    for name in names[1:]:
        ratios = [turn[name]["cpu"] / turn["ours"]["cpu"] for turn in turns]
        found[f"{name} / ours"] = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        print(f"{name} / ours, CPU time: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
