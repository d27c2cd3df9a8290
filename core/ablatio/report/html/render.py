"""The report as one self-contained HTML page: no network, no library, no second file.

Its Content-Security-Policy allows only the styles and scripts whose hashes it lists.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files

from ablatio.report.analysis.findings import Findings
from ablatio.report.analysis.verdict import LANGUAGES
from ablatio.report.escape import script_json, visible
from ablatio.report.html.page_data import content

STYLES, SCRIPTS = (
    ("page.css",),
    ("frame.js", "draw.js", "charts.js", "factors.js", "frontier.js", "scales.js", "search.js", "keys.js", "page.js"),
)

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {style_hash}; \
script-src {script_hash}; {connect}img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript><h1>{title}</h1>{plain}<p>The tables and charts of this page need JavaScript; results.csv and report.md \
beside it hold the same numbers.</p></noscript>
<div id="page"></div>
<script type="application/json" id="data">{data}</script>
<script type="application/json" id="words">{words}</script>
<script>{script}</script>
</body>
</html>
"""


def page_text(findings: Findings, *, script: str = "") -> str:
    """The whole page.

    script  one more of the assets: `live.js`, with which the page asks `LiveServer` for new data, or `reload.js`, with
            which it loads its file anew
    """
    assets = files("ablatio.report.html") / "assets"
    style = "\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in STYLES)
    scripts = (*SCRIPTS[:-1], *([script] if script else []), SCRIPTS[-1])  # page.js builds the page, so it is last
    code = "\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    words = {n: json.loads(assets.joinpath(f"words.{n}.json").read_text(encoding="utf-8")) for n in LANGUAGES}
    title = visible(findings.question or findings.table.study.name)
    return PAGE.format(
        title=html.escape(title),
        plain="".join(f"<p>{html.escape(visible(s))}</p>" for s in findings.said()),
        style=style,
        style_hash=digest(style),
        script=code,
        connect="connect-src 'self'; " if script == "live.js" else "",
        script_hash=digest(code),
        data=script_json(content(findings)),
        words=script_json(words),
    )


def digest(text: str) -> str:
    """The hash of a style or script, as a Content-Security-Policy lists it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
