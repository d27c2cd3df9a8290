"""`ablatio check DIST`: the contract suites on the parts that one distribution brings."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    options = parser("check")
    options.add_argument("dist", help="name of the distribution, as pip knows it")
    asked = options.parse_args(arguments)
    from ablatio.testing import check

    return int(check(asked.dist))
