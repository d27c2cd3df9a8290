"""Asks Python to end."""

import sys

sys.exit(3)
