"""Never finishes loading."""

import time

time.sleep(10_000)
