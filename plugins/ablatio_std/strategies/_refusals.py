"""Refuse what a strategy that divides heads or tokens cannot compute exactly."""

from typing import Protocol

from ablatio import rule

DEVICES = "trainer.devices * trainer.nodes"


class Refuse(Protocol):
    """Register a rule: configs for which `when` holds are refused, because of `why`, at the setting `where`."""

    def __call__(self, when: str, why: str, where: str, fix: str = "strategy=fsdp") -> None: ...


def refusals(splits: str, divided: str, over: str = DEVICES) -> Refuse:
    """Return what registers the rules of strategies with this fact `splits`; `divided` says it in a sentence.

    over  expression of the number of devices that divide it
    """
    who = f"strategy={{strategy.name}} divides {divided} over {{{over}}} devices, and "

    def refuse(when: str, why: str, where: str, fix: str = "strategy=fsdp") -> None:
        rule(
            when=f"facts.strategy.splits == '{splits}' and {DEVICES} > 1 and {over} > 1 "
            f"and {DEVICES} % ({over}) == 0 and ({when})",
            why=who + why,
            fix=fix,
            where=where,
        )

    return refuse


def refuse_uneven(strategy: str, knob: str, most: str) -> None:
    """Register the rule that the devices of a run divide into equal groups, by a knob of a strategy with a limit."""
    name = f"strategy.{knob}"
    rule(
        when=f"strategy.name == '{strategy}' and {DEVICES} > 1 and {name} is not None and {DEVICES} % {name} != 0",
        why=f"{name}={{{name}}} divides the devices of a run into equal groups, and {DEVICES} = {{{DEVICES}}}",
        fix=f"{name}={{nearest_divisor({DEVICES}, min({name}, {most}))}}",
        where=name,
    )
