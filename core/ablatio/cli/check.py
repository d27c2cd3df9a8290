"""`ablatio check DIST`: run the contract suites on everything that one distribution brings."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio check` and return its exit code."""
    options = parser("check", epilog="It needs pytest: pip install 'ablatio[test]'.  Exit code 2: something fails.")
    options.add_argument("dist", help="name of the distribution, as pip knows it")
    options.add_argument("-v", "--verbose", action="count", default=0, help="all reasons; -vv: with tracebacks")
    options.add_argument("--json", action="store_true", help="print the outcome of each check as JSON")
    args = options.parse_args(arguments)
    from ablatio.testing.check_run import check

    return check(args.dist, args.verbose, args.json)
