"""Entry point of `python -m ablatio`: the command line."""

import sys

from ablatio.cli.main import main

sys.exit(main())
