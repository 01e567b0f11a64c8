"""Writes the tables of docs/metrics.md anew: python -m controller.metrics docs/metrics.md"""

import sys
from pathlib import Path

from controller.metrics.page import renewed

for path in map(Path, sys.argv[1:]):
    path.write_text(renewed(path.read_text("utf-8")), "utf-8")
