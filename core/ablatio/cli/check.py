"""`ablatio check DIST`: run the contract suites on all that a distribution brings, or on a file of parts."""

from ablatio.cli.commands import parser, refuse_other_flags

USES = {"without --json": ("verbose",), "with --json, which prints all reasons": ()}


def run(arguments: list[str]) -> int:
    """Run `ablatio check` and return its exit code."""
    options = parser("check", epilog="It needs pytest: pip install 'ablatio[test]'.  Exit code 2: something fails.")
    options.add_argument(
        "dist", nargs="?", help="name of the distribution, as pip knows it; with parts=FILE, the parts of the file"
    )
    options.add_argument("-v", "--verbose", action="count", default=0, help="all reasons; -vv: with tracebacks")
    options.add_argument("--json", action="store_true", help="print the outcome of each check as JSON")
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][args.json])
    from ablatio.errors import UserError
    from ablatio.registry.parts_file import current
    from ablatio.testing.check_run import check, check_file

    if (file := current()) and args.dist:
        raise UserError(
            f"{args.dist} and parts={file.path} came; one of them was expected\n"
            f"    try: ablatio check parts={file.path}"
        )
    if file:
        return check_file(file, args.verbose, args.json)
    if not args.dist:
        raise UserError(
            "check needs the name of a distribution, or a file of parts\n    try: ablatio check parts=my_parts.py"
        )
    return check(args.dist, args.verbose, args.json)
