"""All registries by kind, and contexts that undo or refuse changes to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ablatio.registry.kind_contract import KindContract
from ablatio.registry.part_spec import SESSION, ContractError, Distribution, PartSpec

HELD: dict[str, KindContract] = {}  # the registries by kind: ablatio.registry.registry.REGISTRIES


@contextmanager
def others_unchanged(distribution: Distribution) -> Iterator[None]:
    """Context manager: ContractError if parts or kinds of other distributions are replaced inside; they are put back.

    `register` refuses a name that is taken; this also holds for a plugin that writes into the registries themselves.
    """
    kinds = dict(HELD)
    contents = {k: (r.entries, dict(r.entries), dict(r._targets)) for k, r in HELD.items()}
    yield
    replaced = []
    for kind, registry in kinds.items():
        held, entries, targets = contents[kind]
        if HELD.get(kind) is not registry and not registry.from_catalogue:
            HELD[kind] = registry
            replaced.append(f"the kind {kind}")
        now = HELD[kind]
        for name, entry in entries.items():
            if entry.distribution == distribution or _is_same(now, name, entry, targets.get(name)):
                continue
            replaced.append(f"{kind}={name} of {entry.distribution}")
            held[name] = entry
            now.entries = held
            now._targets.pop(name, None)
            now._targets.update({name: targets[name]} if name in targets else {})
    if replaced:
        what = ", ".join(replaced[:3]) + (" and others" if len(replaced) > 3 else "")
        raise ContractError(f"it replaces {what}; register parts of your own under names that are free")


def _is_same(registry: KindContract, name: str, entry: PartSpec, target: Callable[..., Any] | None) -> bool:
    """True if a part has the module, the class and the distribution of `entry`, and the target if it had one."""
    found, now = registry.entries.get(name), registry._targets.get(name)
    if found is None or (found.module, found.qualname) != (entry.module, entry.qualname):
        return False
    if entry.distribution not in (found.distribution, SESSION):
        return False
    if target is not None:
        return now is target
    return now is None or (now.__module__, now.__qualname__) == (entry.module, entry.qualname)


@contextmanager
def transaction() -> Iterator[None]:
    """Context manager: undo every registration made inside if an exception is raised.

    Targets of parts listed before are kept: their modules stay imported, so nothing would register them again.
    """
    kinds = dict(HELD)
    contents = {k: (dict(r.entries), dict(r._targets)) for k, r in HELD.items()}
    try:
        yield
    except BaseException:
        HELD.clear()
        HELD.update(kinds)
        for kind, (entries, targets) in contents.items():
            imported = {name: t for name, t in HELD[kind]._targets.items() if name in entries}
            HELD[kind].entries, HELD[kind]._targets = entries, imported | targets
        raise
