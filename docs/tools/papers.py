"""Compare what each part cites with papers.tsv, in which the title behind every source was looked at once.

    python docs/tools/papers.py            every part with the title that it cites, to read beside its docstring
    python docs/tools/papers.py --online   asks arXiv for the title of each id, too

It ends with code 1 if a part cites a source that is not in the table (look the title up, compare it with the part, and
add a line), if a line is cited by no part, or if arXiv has another title or none; with code 5 if arXiv does not answer.
"""

import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from ablatio.registry.discovery import load
from ablatio.registry.registry import REGISTRIES

TABLE = Path(__file__).with_name("papers.tsv")
API = "https://export.arxiv.org/api/query?max_results=100&id_list="
ATOM = "{http://www.w3.org/2005/Atom}"
BATCH = 100


def cited() -> dict[str, list[str]]:
    """Parts of ablatio's own plugin by their source, without the prefix of an arXiv id."""
    found = defaultdict[str, list[str]](list)
    for kind, registry in REGISTRIES.items():
        for part in registry:
            if part.paper and part.module.startswith("ablatio_std"):
                found[part.paper.removeprefix("arXiv:")].append(f"{kind}={part.name}")
    return found


def titles_at_arxiv(ids: Sequence[str]) -> dict[str, str]:
    """Titles by id, asked for in batches; an id that arXiv does not know is left out."""
    found: dict[str, str] = {}
    for start in range(0, len(ids), BATCH):
        with urllib.request.urlopen(API + ",".join(ids[start : start + BATCH]), timeout=60) as answer:
            found |= titles_in(answer.read())
    return found


def titles_in(answer: bytes) -> dict[str, str]:
    """Titles by id, without the number of a version, in an answer of arXiv's API (an Atom feed)."""
    entries = ElementTree.fromstring(answer).iter(f"{ATOM}entry")
    placed = [(entry.findtext(f"{ATOM}id", ""), entry.findtext(f"{ATOM}title", "")) for entry in entries]
    return {place.rpartition("/")[2].partition("v")[0]: " ".join(title.split()) for place, title in placed}


def plain(title: str) -> str:
    """A title without case, punctuation and spaces."""
    return re.sub(r"\W+", "", title).lower()


def other_titles(table: Mapping[str, str], ids: Sequence[str]) -> Iterator[str]:
    """A line for each id that arXiv does not know or has another title for; ids without a title here count, too."""
    found = titles_at_arxiv(ids)
    for source in ids:
        theirs, ours = plain(found.get(source, "")), plain(table.get(source, ""))
        # A later version may have a longer title.
        if not (theirs and ours and (theirs.startswith(ours) or ours.startswith(theirs))):
            yield f"{source}: arXiv has {found.get(source, 'no such paper')}"


def main(online: bool) -> int:
    load()
    table = dict(line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines())
    parts, wrong = cited(), 0
    for source in sorted({*parts, *table}):
        print(f"{source}  {table.get(source, '-')}: {' '.join(parts.get(source, ['-']))}")
        wrong += source not in table or source not in parts
    if online:
        try:
            for line in other_titles(table, [s for s in parts if re.fullmatch(r"\d{4}\.\d{4,5}", s)]):
                print(line)
                wrong += 1
        except (OSError, ElementTree.ParseError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            print(f"arXiv gave no answer that can be read: {reason}\n    try: python {sys.argv[0]}", file=sys.stderr)
            return 5
    print(f"{len(parts)} sources of {sum(map(len, parts.values()))} parts, {wrong} to look at")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main("--online" in sys.argv[1:]))
