"""Refuse what a strategy that divides heads or tokens cannot compute exactly."""

from typing import Protocol

from ablatio import rule

DEVICES = "trainer.devices * trainer.nodes"


class Refuse(Protocol):
    """Register a rule: configs for which `when` holds are refused, because of `why`, at the setting `where`."""

    def __call__(self, when: str, why: str, where: str, fix: str = "strategy=fsdp") -> None: ...


def refusals(splits: str, divided: str) -> Refuse:
    """Return what registers the rules of strategies with this fact `splits`; `divided` says it in a sentence."""
    who = f"strategy={{strategy.name}} divides {divided} over {{{DEVICES}}} devices, and "

    def refuse(when: str, why: str, where: str, fix: str = "strategy=fsdp") -> None:
        rule(
            when=f"facts.strategy.splits == '{splits}' and {DEVICES} > 1 and ({when})",
            why=who + why,
            fix=fix,
            where=where,
        )

    return refuse
