"""Entry point of `python -m ablatio.cli`."""

import sys

from ablatio.cli.main import main

sys.exit(main())
