"""`ablatio report FOLDER...`: what a study says so far, in the terminal and as files; it may still be running."""

from pathlib import Path

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    options = parser("report")
    options.add_argument(
        "folders", type=Path, nargs="+", help="sweeps, runs, or folders of runs; several are one study"
    )
    options.add_argument("--out", type=Path, help="where the files go; by default FOLDER/report")
    options.add_argument("--metric", help="the score that is compared; by default val/loss")
    options.add_argument("--baseline", help="the arm that others are compared with: 'norm=rmsnorm position=rope'")
    options.add_argument(
        "--correction", choices=("holm", "dunnett", "bh", "none"), default="holm",
        help="of p for many comparisons; dunnett: one spread for all arms; bh: Benjamini-Hochberg, for screening",
    )  # fmt: skip
    options.add_argument(
        "--interval", choices=("t", "bootstrap", "permutation"), default="t",
        help="paired t; BCa bootstrap, for 20 seeds or more; permutation: p from the signs of the differences",
    )  # fmt: skip
    options.add_argument("--quiet", action="store_true", help="the files alone")
    asked = options.parse_args(arguments)
    from rich.console import Console

    from ablatio.api.reports import find_in, write_report
    from ablatio.report.escape import visible
    from ablatio.report.terminal import arm_table

    findings = find_in(asked.folders, asked.metric, asked.baseline, asked.correction, asked.interval)
    if not asked.quiet:
        arm_table.show(Console(), findings)
    out = write_report(findings, asked.folders, asked.out)
    print(f"written: {visible(out)}/report.html, report.md, results.csv, costs.csv")
    return 0
