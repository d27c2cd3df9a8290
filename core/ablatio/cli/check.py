"""`ablatio check DIST`: run the contract suites on the parts of one distribution."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio check` and return its exit code."""
    options = parser("check")
    options.add_argument("dist", help="name of the distribution, as pip knows it")
    args = options.parse_args(arguments)
    from ablatio.testing import check

    return int(check(args.dist))
