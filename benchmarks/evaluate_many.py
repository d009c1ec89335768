"""Run several `sjepa_fast.evaluate` command lines, one per argument, in one process."""

from __future__ import annotations

import shlex
import sys

from sjepa_fast import evaluate

for line in sys.argv[1:]:
    evaluate.run(shlex.split(line))
