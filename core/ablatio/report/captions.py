"""Caption of the table of arms."""

from __future__ import annotations

from ablatio.report.analysis.findings import CORRECTIONS, Findings
from ablatio.report.words import Language, say


def arms_caption(findings: Findings, language: Language = "en") -> str:
    """How differences are paired, their intervals, correction and direction; empty if nothing is compared."""
    found = findings.comparison
    if found is None or not found.pairs:
        return ""
    direction = say("lower" if findings.better == "low" else "higher", language)
    told = {"metric": findings.metric, "direction": direction}
    if found.best is not None:
        return say("caption best", language, **told)
    starred = any(p.corrected for p in found.pairs)
    star = say("caption star", language, star=say("of one comparison", language)) if starred else ""
    against = say("against base" if found.baseline else "against each", language)
    correction = CORRECTIONS[found.correction]
    p = say("p_after", language, correction=correction) if correction else say("p_plain", language)
    return say("caption", language, against=against, star=star, p=p, **told)
