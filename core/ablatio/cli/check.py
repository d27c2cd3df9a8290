"""`ablatio check DIST`: run the contract suites on the parts of one distribution, or of a file (parts=FILE)."""

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio check` and return its exit code."""
    options = parser("check")
    options.add_argument(
        "dist", nargs="?", help="name of the distribution, as pip knows it; with parts=FILE, the parts of the file"
    )
    args = options.parse_args(arguments)
    from ablatio.errors import UserError
    from ablatio.registry.parts_file import current
    from ablatio.testing import check, check_file

    if (file := current()) and args.dist:
        raise UserError(f"{args.dist} and parts={file.path} came; one of them was expected\n    try: ablatio check "
                        f"parts={file.path}")  # fmt: skip
    if file:
        return int(check_file(file))
    if not args.dist:
        raise UserError("check needs the name of a distribution, or a file of parts\n"
                        "    try: ablatio check parts=my_parts.py")  # fmt: skip
    return int(check(args.dist))
