"""Program of one rank: trains the runs that its first argument, a JSON file, lists: [[name, [override, ...]], ...]."""

import json
import sys
from pathlib import Path

import ablatio

if __name__ == "__main__":
    runs = json.loads(Path(sys.argv[1]).read_text())
    for _name, words in runs:
        if words[0].startswith("resume="):
            ablatio.resume_run(words[0].removeprefix("resume="), *words[1:], quiet=True)
        else:
            ablatio.train(*words, quiet=True)
