"""`ablatio show position=rope`: formula, knobs with type, default and range, source, and distribution of a part."""

import difflib
from typing import Any

from ablatio.cli.commands import parser
from ablatio.config import presets, schema, yaml_files
from ablatio.errors import UserError, did_you_mean
from ablatio.registry import discovery, per_layer
from ablatio.registry.knobs import Knob
from ablatio.registry.oracles import checked_against
from ablatio.registry.registry import REGISTRIES, PartSpec

FORMS = "a part (position=rope), a kind (position), a preset (preset=gpt2) or a section (train)"


def run(arguments: list[str]) -> int:
    """Run `ablatio show` and return its exit code."""
    options = parser("show")
    options.add_argument("what", help=FORMS)
    options.add_argument(
        "--author",
        action="store_true",
        help="of a kind: what a part receives and defines, its facts, rules, an example",
    )
    args = options.parse_args(arguments)
    what = args.what
    discovery.load()
    # `experiment=./my.yaml` names a file that lies in no folder of options.
    yaml_files.take_in([what])
    if args.author:
        _show_contract(what)
        return 0
    from rich.console import Console

    console = Console()
    kind, equals, name = what.partition("=")
    if equals or "/" in what:
        kind, name = (kind, name) if equals else what.split("/", 1)
        if kind in REGISTRIES:
            _show_entry(console, REGISTRIES[kind][name])
        else:
            _show_file(console, kind, name)
    elif what in schema.SECTIONS or what == "run":
        section = schema.SECTIONS.get(what, schema.Run)
        console.print(f"[bold]{what}[/]  {section.__doc__}\n")
        prefix = "" if what == "run" else f"{what}."
        console.print(knob_table(schema.section_knobs(section), prefix))
    elif what == per_layer.LAYERS:
        kinds = ", ".join(registry.kind for registry in per_layer.kinds())
        console.print(LAYERS_HELP.format(kinds=kinds), highlight=False, markup=False)
    elif what in REGISTRIES:
        from ablatio.cli.list import print_kinds

        print_kinds([REGISTRIES[what]], verbose=True)
    elif files := yaml_files.options_of(what):
        from ablatio.cli.list import print_files

        print_files({what: files}, verbose=True)
    else:
        known = [*REGISTRIES, *yaml_files.files(), *schema.SECTIONS, per_layer.LAYERS, "run"]
        raise UserError(
            f"there is nothing called `{what}`{did_you_mean(what, known)}\n    show accepts {FORMS}\n"
            "    try: ablatio list"
        )
    return 0


LAYERS_HELP = """layers  The parts of each layer, where they differ.

layers.KIND      a list that is cycled over the depth
layers.at.KIND   single layers by number: 0 is the first, -1 the last
KIND             {kinds}

An entry is a name, `name*3` for three layers, or `{{name: {{knob: value}}}}`.
A knob comes from the entry; else from the run's option, if both have it
(attention.qk_norm=rmsnorm holds in all layers); else it has its default.

layers.attention=[gated_deltanet*3,mha]   three linear layers, then a full one
layers.attention=[{{sliding*5: {{window: 128}}}},mha]
                                          five local layers, then a global one
layers.position=[rope*3,none]             no rotation in every fourth layer
layers.at.mlp={{0: none, -1: moe}}          the first and the last layer
-m layers.attention=null,[sliding,mha]    two arms of a sweep"""


def _show_contract(kind: str) -> None:
    if kind not in REGISTRIES:
        part = kind.partition("=")[0].partition("/")[0]
        near = part if part in REGISTRIES else (difflib.get_close_matches(kind, REGISTRIES, 1, 0.5) or ["norm"])[0]
        raise UserError(
            f"--author shows the contract of a kind, and `{kind}` is not the name of a kind\n"
            f"    try: ablatio show {near} --author"
        )
    from ablatio.cli.author_page import author_page

    print(author_page(kind), end="")


def _show_entry(console: Any, entry: PartSpec) -> None:
    from rich.markup import escape

    console.print(f"[bold]{entry.kind}={entry.name}[/]\n\n{escape(entry.doc)}\n", highlight=False)
    if entry.knobs:
        many = REGISTRIES[entry.kind].multiple
        console.print(knob_table(entry.knobs, f"{entry.kind}.{entry.name}." if many else f"{entry.kind}."))
    else:
        console.print("It has no knobs.")
    console.print(f"\nsource         {escape(entry.paper or 'none given')}", highlight=False)
    oracles = "; ".join(checked_against(entry)) or "no test recorded for its present source"
    console.print(f"checked with   {escape(oracles)}", highlight=False)
    console.print(
        f"distribution   {escape(str(entry.distribution))} ({entry.module}.{entry.qualname})", highlight=False
    )
    if entry.facts:
        facts = ", ".join(f"{k}: {v}" for k, v in entry.facts.items())
        console.print(f"facts          {escape(facts)}", highlight=False)
    if entry.wiring:
        console.print(f"receives       {', '.join(entry.wiring)} from the framework", highlight=False)


def _show_file(console: Any, group: str, name: str) -> None:
    """Print a YAML file: its comment, then its settings."""
    from rich.markup import escape

    known = yaml_files.files()
    if group not in known:
        near = did_you_mean(group, [*REGISTRIES, *known])
        raise UserError(f"there is no kind `{group}`{near}\n    try: ablatio list")
    if name not in known[group]:
        own = presets.sizes().get(name, []) if group == yaml_files.SIZE else []
        near = f"; it is a size of preset={own[0]} only" if own else did_you_mean(name, known[group])
        near += yaml_files.why_left_out(group, name)
        raise UserError(
            f"there is no {group}={name}{near}\n    there are {', '.join(known[group])}\n    try: ablatio list {group}"
        )
    file = known[group][name]
    text = file.path.read_text(encoding="utf-8").splitlines()
    body = [line for line in text[len(file.doc.splitlines()) :] if not line.startswith("#")]
    console.print(f"[bold]{group}={name}[/]\n\n{escape(file.doc)}\n", highlight=False)
    console.print(escape("\n".join(body).strip()), highlight=False)
    console.print(
        f"\ndistribution   {escape(str(file.distribution))} ({escape(str(file.path))})", highlight=False, soft_wrap=True
    )


def knob_table(knobs: tuple[Knob, ...], prefix: str) -> Any:
    """Table of knobs: setting, type, default, range and meaning."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("setting", "type", "default", "range", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column == "setting")
    for knob in knobs:
        default = "null" if knob.default is None else str(knob.default)
        table.add_row(
            f"[bold]{prefix}{knob.name}[/]", escape(knob.type_text), escape(default), str(knob.range or ""), knob.note
        )
    return table
