"""`ablatio report FOLDER...`: results of a finished or running study, in the terminal and as files."""

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.errors import UserError
from ablatio.report.words import LANGUAGES

if TYPE_CHECKING:
    from ablatio.report.analysis.findings import Findings
    from ablatio.report.words import Language

USES = {"without --serve": ("out", "quiet", "language"), "with --serve, which writes no files": ("port",)}


def run(arguments: list[str]) -> int:
    """Run `ablatio report` and return its exit code."""
    options = parser("report")
    options.add_argument(
        "folders", type=Path, nargs="+", help="sweeps, runs, or folders of runs; several are reported as one study"
    )
    options.add_argument("--out", type=Path, help="folder for the files; by default FOLDER/report")
    options.add_argument("--metric", help="score to compare; by default val/loss")
    options.add_argument("--baseline", help="arm that the others are compared with: 'norm=rmsnorm position=rope'")
    options.add_argument(
        "--correction", choices=("holm", "dunnett", "bh", "none"), default="holm",
        help="correction for multiple comparisons; dunnett: pooled variance; bh: Benjamini-Hochberg, for screening",
    )  # fmt: skip
    options.add_argument(
        "--interval", choices=("t", "moderated", "skewed", "bootstrap", "permutation"), default="t",
        help="t: paired t; moderated: p with variances steadied by all pairs, for few seeds; "
        "skewed: holds for skewed scores of unequal spread, with less power; "
        "bootstrap: BCa, for 20 seeds or more; permutation: p from the signs of the differences",
    )  # fmt: skip
    options.add_argument("--alpha", type=float, help="share of false claims that is accepted; by default the study's")
    options.add_argument("--margin", help="test against this difference: 0.005nats; by default the study's")
    options.add_argument("--target", help="test which arms reach this score: 3.28; by default the study's")
    options.add_argument(
        "--language", choices=LANGUAGES, default="en", type=functools.partial(_language, arguments),
        help="of the terminal and of report.md; the page has a switch, and tables for programs and papers are English",
    )  # fmt: skip
    options.add_argument("--quiet", action="store_true", help="write the files and print only their paths")
    going_on = options.add_mutually_exclusive_group()
    going_on.add_argument(
        "--serve", action="store_true", help="show the page on this machine, refreshed while runs go on"
    )
    going_on.add_argument(
        "--follow", action="store_true",
        help="print the answer and write the files again while runs go on, until they have ended; Ctrl-C ends it",
    )  # fmt: skip
    options.add_argument("--port", type=int, default=8417, help="port of --serve on 127.0.0.1; 0 takes a free one")
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][args.serve])
    from rich.console import Console

    from ablatio.api.reports import find_in, write_report
    from ablatio.report.terminal import arm_table

    def load() -> "Findings":
        return find_in(args.folders, args.metric, args.baseline, args.correction, args.interval,
                       alpha=args.alpha, margin=args.margin, target=args.target)  # fmt: skip

    if args.serve:
        return _serve(args.folders, load, args.port)
    if args.follow:
        return _follow(args.folders, load, args.out, args.quiet, args.language)
    findings = load()
    if not args.quiet:
        arm_table.show(Console(), findings, args.language)
    out = write_report(findings, args.folders, args.out, language=args.language)
    print(_written(out, findings, args.language))
    return 0


def _language(arguments: Sequence[str], text: str) -> str:
    """A known language.  Raises UserError for another, with the command that works."""
    if text in LANGUAGES:
        return text
    words = [LANGUAGES[0] if word == text else word.replace(f"={text}", f"={LANGUAGES[0]}") for word in arguments]
    known = " or ".join(LANGUAGES)
    raise UserError(f"--language is {text!r}; expected {known}\n    try: ablatio report {shlex.join(words)}")


def _written(out: Path, findings: "Findings", language: "Language") -> str:
    from ablatio.report.escape import visible
    from ablatio.report.words import say

    more = ", effects.csv, effects.tex" if findings.factors is not None else ""
    more += ", shrunk.csv" if findings.shrunk else ""
    files = f"{visible(out)}/report.html, report.md, results.csv, costs.csv, arms.tex{more}"
    return say("files written", language, files=files)


def _follow(
    folders: Sequence[Path], load: "Callable[[], Findings]", out: Path | None, quiet: bool, language: "Language"
) -> int:
    """Report until the runs have ended or Ctrl-C; 1 if they stopped before their end."""
    from rich.console import Console

    from ablatio.api.reports import write_report
    from ablatio.report.follow import follow

    told: list[str] = []

    def write(findings: "Findings", going_on: bool) -> None:
        # Only the last is printed: each report replaces the files of the one before.
        place = write_report(findings, folders, out, going_on=going_on, language=language)
        told[:] = [_written(place, findings, language)]

    try:
        ended = follow(folders, load, write, Console(quiet=quiet), language)
    except KeyboardInterrupt:
        print()
        ended = True
    print(*told, sep="\n")
    return 0 if ended else 1


def _serve(folders: Sequence[Path], load: "Callable[[], Findings]", port: int) -> int:
    """Serve the page until Ctrl-C."""
    from ablatio.report.html.live import LiveReport, LiveServer

    with LiveServer(LiveReport(folders, load), port) as server:
        print(f"{server.url}  (this machine only; Ctrl-C ends it)", flush=True)
        print(f"    from another machine: ssh -L {server.server_port}:127.0.0.1:{server.server_port} HOST", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
