"""Speed of tokenizing a corpus: ours against `map` of datasets, the same tokenizer on the same text, MB/s a core.

    python benchmarks/data.py [--megabytes 20] [--workers 1] [--turns 5] [--json FILE]

Text is made once: State of the Union messages, with the words of each document in a new order. Both read the same
Parquet file, encode each document with the same byte-level BPE of 2048 ids, and write the tokens to disk: ours as two
memory-mapped streams with digests, in its cache; datasets as Arrow, by `map(batched=True)` with tokenizers'
`encode_batch` on the same `num_proc`. They take turns (A B A B ...), each in a process of its own; time is the CPU time
of that process and its workers after the imports, and the ratio is the median over the turns of theirs / ours. `--only
ours` prepares the text and prints time and peak memory, for large corpora: `--megabytes 10000 --only ours`.
"""

import argparse
import importlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIECE = 4000  # characters of a document


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


def write(folder: Path, megabytes: float) -> int:
    """Write the documents as Parquet and a trained tokenizer; return their bytes."""
    import pyarrow
    import pyarrow.parquet

    from ablatio import sources, tokenizers

    size, schema = 0, pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(folder / "text.parquet", schema) as target:
        batch: list[str] = []
        for text in documents(megabytes):
            size += len(text.encode())
            batch.append(text)
            if len(batch) == 1000:
                target.write_table(pyarrow.table({"text": batch}, schema=schema))
                batch = []
        target.write_table(pyarrow.table({"text": batch}, schema=schema))
    made: Any = tokenizers.build("bpe", {"vocab_size": 2048})
    made.train(document.text for document in sources.build("sotu", {"since": 1980}).documents())
    made.fast("<end>").save(str(folder / "tokenizer.json"))
    (folder / "state.json").write_text(made.state())
    return size


def ours(folder: Path, out: Path, workers: int) -> int:
    """Prepare the corpus in an empty cache; return the number of tokens."""
    from ablatio import sources, tokenizers
    from ablatio.data.corpus import prepare
    from ablatio.data.shards import Resources

    made: Any = tokenizers.build("bpe", {"vocab_size": 2048})
    made.restore((folder / "state.json").read_text())
    made.trained = False
    source: Any = sources.build("parquet", {"path": str(folder / "text.parquet")})
    corpus = prepare(source, made, "bpe", out, 0.02, Resources(workers))
    return sum(corpus.counts[split]["tokens"] for split in ("train", "validation"))


def theirs(folder: Path, out: Path, workers: int) -> int:
    """The same with datasets' `map`; return the number of tokens."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": [found.ids for found in model.encode_batch(batch["text"])]}

    data = datasets.Dataset.from_parquet(str(folder / "text.parquet"), cache_dir=str(out))
    features = datasets.Features({"ids": datasets.Sequence(datasets.Value("uint16"))})
    made = data.map(
        encode, batched=True, remove_columns=["text"], features=features, num_proc=workers if workers > 1 else None
    )
    return sum(len(row) for row in made.with_format("arrow")["ids"])


def run(who: str, folder: Path, workers: int) -> dict[str, float]:
    """One turn in a process of its own: seconds on the clock, CPU seconds, tokens, peak MiB of a process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--child", who, str(folder), out, "--workers", str(workers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def child(who: str, folder: Path, out: Path, workers: int) -> None:
    """Do the work; print its times without imports, its tokens, and the peak memory of the process and of a worker."""
    importlib.import_module({"ours": "ablatio.data.corpus", "datasets": "datasets"}[who])
    both, begin = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN), time.perf_counter()
    before = sum(resource.getrusage(of).ru_utime + resource.getrusage(of).ru_stime for of in both)
    tokens = {"ours": ours, "datasets": theirs}[who](folder, out, workers)
    cpu = sum(resource.getrusage(of).ru_utime + resource.getrusage(of).ru_stime for of in both) - before
    peak, worker = (resource.getrusage(of).ru_maxrss / 1024 for of in both)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "cpu": cpu, "tokens": tokens, "peak": peak, "worker_peak": worker}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=("ours", "datasets"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]), args.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), args.megabytes)
        names = (args.only,) if args.only else ("ours", "datasets")
        turns = [{name: run(name, Path(folder), args.workers) for name in names} for _ in range(args.turns)]
    found: dict[str, Any] = {"megabytes": size / 1e6, "workers": args.workers, "turns": args.turns}
    for name in names:
        middle = {key: statistics.median(turn[name][key] for turn in turns) for key in turns[0][name]}
        found[name] = middle | {"mb_per_cpu_second": size / 1e6 / middle["cpu"]}
        print(
            f"{name:<9} {found[name]['mb_per_cpu_second']:6.2f} MB per CPU second, {middle['seconds']:7.1f} s, "
            f"{middle['tokens']:,.0f} tokens, peak {middle['peak']:.0f} MiB, worker {middle['worker_peak']:.0f} MiB"
        )
    if len(names) == 2:
        found["ratio"] = statistics.median(turn["datasets"]["cpu"] / turn["ours"]["cpu"] for turn in turns)
        print(f"datasets / ours, CPU time: {found['ratio']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
