"""`ablatio new-plugin NAME`: create a plugin distribution that installs and passes its contract suite."""

from pathlib import Path

from ablatio.cli.commands import parser
from ablatio.registry import discovery


def run(arguments: list[str]) -> int:
    """Run `ablatio new-plugin` and return its exit code."""
    options = parser("new-plugin")
    options.add_argument("name", help="name of the distribution: my-norms")
    options.add_argument(
        "--kind",
        action="append",
        help="kind of its part, any that `ablatio list` shows (default: norm); several: a,b or --kind repeated",
    )
    options.add_argument("--in", dest="folder", default=".", help="folder to create it in; by default the current one")
    args = options.parse_args(arguments)
    from ablatio.cli.scaffold.plugin import new_plugin

    discovery.load()
    kinds = [kind.strip() for word in args.kind or ["norm"] for kind in word.split(",") if kind.strip()]
    written = new_plugin(args.name, Path(args.folder), kinds or ["norm"])
    print(f"created {written}; next:\n  pip install -e {written}\n  ablatio check {args.name}")
    return 0
