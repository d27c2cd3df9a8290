"""`ablatio new-plugin NAME`: a distribution that installs and passes its suite, to be changed into yours."""

from pathlib import Path

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    options = parser("new-plugin")
    options.add_argument("name", help="name of the distribution: my-norms")
    options.add_argument(
        "--kind", default="norm", help="what it begins with: norm (the default), alignment, peft, reward"
    )
    options.add_argument("--in", dest="folder", default=".", help="where to write it; by default here")
    asked = options.parse_args(arguments)
    from ablatio.cli.scaffold.plugin import new_plugin

    written = new_plugin(asked.name, Path(asked.folder), asked.kind)
    print(f"{written} is ready:\n  pip install -e {written}\n  ablatio check {asked.name}")
    return 0
