"""The core names no part: what it needs to know about a part is a fact that the part declares."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ablatio
from ablatio.registry.registry import REGISTRIES

CORE = Path(ablatio.__file__).parent

# Files that may name parts, and why.
ALLOWED = {
    "cli/scaffold/": "writes plugins and their examples for authors",
    "interop/families/": "maps the parts of transformers' models to ours by name",
    "config/from_transformers.py": "translates configs of transformers' models into parts",
    "config/transformers_parts.py": "translates settings of transformers' models into parts",
    "registry/kinds/": "declares the default and the empty option of each kind",
    "registry/renamed.py": "former names of knobs, by part",
    "registry/value_schedules.py": "names of functions of progress, some of which are also those of schedules",
    "storage/gguf.py": "writes model configs in transformers' format",
    "storage/pretrained.py": "the cache folder for models is called like a tokenizer",
    "testing/sample_parts.py": "sample data needs matching sources, adapters to mix need a peft method",
}
# Part names that are also common words: they count only where a part is chosen, built or compared.
COMMON_WORDS = {
    "adapter", "answers", "bare", "bytes", "causal", "encoder", "feedback", "full", "gated", "hf", "length", "linear",
    "model", "none", "paired", "power", "prefix", "prompt", "reward", "rule", "symbols", "text", "plain", "process",
    "random", "run", "sequential", "parallel", "identity", "clip", "convolution", "drop_path", "exact_answer", "policy",
    "preference", "jsonl", "csv", "tensorboard", "mlflow", "wandb", "position", "second",
    "task", "json", "table", "dataset", "parquet", "accuracy", "evaluate", "judge", "memory", "sample", "win_rate",
    "difficulty", "perplexity", "ray", "stages", "target", "weights", "context", "damaged", "repeated", "tensor",
    "temperature", "language",
}  # fmt: skip


@pytest.fixture(scope="module")
def names() -> set[str]:
    return {
        entry.name for registry in REGISTRIES.values() for entry in registry if entry.distribution.name == "ablatio"
    }


def constants(tree: ast.AST) -> Iterator[tuple[ast.Constant, ast.AST]]:
    """Yield each string constant of the code and its parent node, without docstrings."""
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not isinstance(parent, ast.Expr):
                yield child, parent


def names_a_part(node: ast.Constant, parent: ast.AST) -> bool:
    """True where the string must be the name of a part: {"name": x}, build(x), REGISTRIES[k][x], x.name == ..."""
    if isinstance(parent, ast.Dict):
        pairs = zip(parent.keys, parent.values, strict=True)
        return any(v is node and isinstance(k, ast.Constant) and k.value == "name" for k, v in pairs)
    if isinstance(parent, ast.Compare):
        sides = [ast.unparse(side) for side in (parent.left, *parent.comparators) if side is not node]
        return any(s.endswith((".name", "['name']")) or ".get('name'" in s for s in sides)
    if isinstance(parent, ast.Call):
        called = ast.unparse(parent.func)
        named = called.endswith(".get") and ast.unparse(parent.args[0]) == "'name'" and node in parent.args[1:]
        return named or (called.endswith((".build", ".target")) and parent.args[:1] == [node])
    if isinstance(parent, ast.Subscript) and parent.slice is node:
        return isinstance(parent.value, ast.Subscript) and ast.unparse(parent.value.value).endswith("REGISTRIES")
    return False


def is_key(node: ast.Constant, parent: ast.AST) -> bool:
    """True for the key of a mapping: x["length"], {"length": 3}, x.get("length")."""
    if isinstance(parent, ast.Subscript):
        return parent.slice is node
    if isinstance(parent, ast.Dict):
        return node in parent.keys
    return isinstance(parent, ast.Call) and ast.unparse(parent.func).endswith((".get", ".pop", "field"))


# `eval=[task_file]`, `eval.task_file.path=`: a setting that is made here, not an example within a sentence.
SETTING = re.compile(r"[+~]?([a-z_]+)(?:\.([a-z_0-9]+)[a-z_0-9.]*)?=?\[?([a-z_0-9,]*)")


def sets_a_part(node: ast.Constant) -> bool:
    """True for an override, or its beginning, that chooses a part or sets the knob of one that it names."""
    found = SETTING.match(node.value)
    if found is None or re.search(r"\s", node.value) or found[1] not in REGISTRIES or found.end() == len(found[1]):
        return False
    registry = REGISTRIES[found[1]]
    chosen = [*found[3].split(","), *([found[2]] if registry.multiple and found[2] else [])]
    return any(name in registry.entries for name in chosen)


def in_a_rule(node: ast.Constant, parent: ast.AST, names: set[str]) -> list[str]:
    """Parts that an expression of a rule names, quoted or as a setting; values of facts may have the same name."""
    if not isinstance(parent, ast.keyword) or parent.arg not in ("when", "why", "fix"):
        return []
    text = re.sub(r"facts\.[\w.]+ [!=]= '\w+'", "", node.value)
    quoted = re.findall(r"'(\w+)'", text) + [n for many in re.findall(r"=\[?([\w,]+)", text) for n in many.split(",")]
    return [name for name in quoted if name in names and name not in COMMON_WORDS]


def named_in(text: str, names: set[str]) -> list[str]:
    """`line: name` of each part that the code names."""
    found = []
    for node, parent in constants(ast.parse(text)):
        kind, equals, option = node.value.partition("=")
        whole = bool(equals) and kind in REGISTRIES and option in names
        plain = node.value in names and node.value not in COMMON_WORDS and not is_key(node, parent)
        made = sets_a_part(node) or in_a_rule(node, parent, names)
        if whole or plain or made or (node.value in names and names_a_part(node, parent)):
            found.append(f"{node.lineno}: {node.value}")
    return found


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.relative_to(CORE).as_posix())
def test_core_file_names_no_part(path: Path, names: set[str]) -> None:
    place = path.relative_to(CORE).as_posix()
    found = named_in(path.read_text(encoding="utf-8"), names)
    if not place.startswith(tuple(ALLOWED)):
        assert not found, f"core/ablatio/{place} names parts: {'; '.join(found)}; let the part declare a fact"


def test_each_exception_is_needed(names: set[str]) -> None:
    for place in ALLOWED:
        files = [CORE / place] if place.endswith(".py") else [*(CORE / place).rglob("*.py")]
        assert any(named_in(path.read_text(encoding="utf-8"), names) for path in files), (
            f"{place} names no part anymore: remove it from ALLOWED"
        )


@pytest.mark.parametrize(
    "code",
    [
        "if config['norm']['name'] == 'rmsnorm': pass",
        "if choice.name == 'none': pass",
        "launchers.build('pool', {})",
        "fix = 'attention=mha'",
        "design = {'name': 'full'}",
        "name = config.get('name', 'full')",
        "part = REGISTRIES['checkpointing']['none']",
        "DESIGNS = ('one_at_a_time', 'tpe')",
        "found = ['eval=[task_file]', path]",
        "found = f'eval.task_file.path={name}'",
        "rule(when='not facts.source.combines', fix=\"source={'gsm_symbolic' if 1 else 'sentiment'}\")",
        "rule(why='source=several source.of=[sotu,zh_classics] are two')",
    ],
)
def test_named_part_is_found(code: str, names: set[str]) -> None:
    assert named_in(code, names)


@pytest.mark.parametrize(
    "code",
    [
        "'''norm=rmsnorm'''",
        "x['length']",
        "mask == 'causal'",
        "f(text='norm=mine')",
        "rule(when=\"facts.architecture.mask == 'encoder_decoder'\")",
        "hint = 'try: source=sotu'",
    ],
)
def test_other_strings_are_ignored(code: str, names: set[str]) -> None:
    assert not named_in(code, names)
