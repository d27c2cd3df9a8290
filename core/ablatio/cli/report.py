"""`ablatio report FOLDER...`: results of a finished or running study, in the terminal and as files."""

from pathlib import Path

from ablatio.cli.commands import parser


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
        "--interval", choices=("t", "moderated", "bootstrap", "permutation"), default="t",
        help="t: paired t; moderated: p with variances steadied by all pairs, for few seeds; "
        "bootstrap: BCa, for 20 seeds or more; permutation: p from the signs of the differences",
    )  # fmt: skip
    options.add_argument("--alpha", type=float, help="share of false claims that is accepted; by default the study's")
    options.add_argument("--margin", help="test against this difference: 0.005nats; by default the study's")
    options.add_argument("--target", help="test which arms reach this score: 3.28; by default the study's")
    options.add_argument("--quiet", action="store_true", help="write the files and print only their paths")
    args = options.parse_args(arguments)
    from rich.console import Console

    from ablatio.api.reports import find_in, write_report
    from ablatio.report.escape import visible
    from ablatio.report.terminal import arm_table

    findings = find_in(args.folders, args.metric, args.baseline, args.correction, args.interval,
                       alpha=args.alpha, margin=args.margin, target=args.target)  # fmt: skip
    if not args.quiet:
        arm_table.show(Console(), findings)
    out = write_report(findings, args.folders, args.out)
    more = ", effects.csv, effects.tex" if findings.factors is not None else ""
    more += ", shrunk.csv" if findings.shrunk else ""
    print(f"written: {visible(out)}/report.html, report.md, results.csv, costs.csv{more}")
    return 0
