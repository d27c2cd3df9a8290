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

    from ablatio.report.analysis.findings import find
    from ablatio.report.escape import visible
    from ablatio.report.html.render import page_text
    from ablatio.report.markdown import markdown_text
    from ablatio.report.read.table import read_table
    from ablatio.report.terminal import arm_table
    from ablatio.storage.atomic_write import make_folder, write_text

    table = read_table(asked.folders)
    findings = find(table, asked.metric, asked.baseline, correction=asked.correction, method=asked.interval)
    if not asked.quiet:
        arm_table.show(Console(), findings)
    out = make_folder(asked.out or (asked.folders[0] if len(asked.folders) == 1 else Path()) / "report")
    write_text(out / "results.csv", arm_table.results_csv(table))
    write_text(out / "costs.csv", arm_table.costs_csv(table))
    write_text(out / "report.md", markdown_text(findings))
    write_text(out / "report.html", page_text(findings))
    print(f"written: {visible(out)}/report.html, report.md, results.csv, costs.csv")
    return 0
