"""All benchmarks of tuning and alignment: DPO, SFT, reward models, GRPO, RLOO, generation and LoRA against peers.

    python benchmarks/alignment.py              # about half an hour on one core

Runs preferences.py (against trl), policies.py (trl, transformers) and pefts.py (peft); each describes its comparisons.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("preferences", "policies", "pefts")


def main() -> None:
    """Run the chosen benchmarks one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="number of turns in each comparison")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    for name in args.only:
        script = Path(__file__).with_name(f"{name}.py")
        subprocess.run([sys.executable, script, "--turns", str(args.turns)], check=True)


if __name__ == "__main__":
    main()
