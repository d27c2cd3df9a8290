"""`ablatio new-plugin NAME`: create a plugin distribution that installs and passes its contract suite."""

from pathlib import Path

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio new-plugin` and return its exit code."""
    options = parser("new-plugin")
    options.add_argument("name", help="name of the distribution: my-norms")
    options.add_argument(
        "--kind", default="norm", help="kind of its first part: norm (default), alignment, peft, reward"
    )
    options.add_argument("--in", dest="folder", default=".", help="folder to create it in; by default the current one")
    args = options.parse_args(arguments)
    from ablatio.cli.scaffold.plugin import new_plugin

    written = new_plugin(args.name, Path(args.folder), args.kind)
    print(f"created {written}; next:\n  pip install -e {written}\n  ablatio check {args.name}")
    return 0
