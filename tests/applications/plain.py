"""An application that knows nothing of this package, and does what scripts do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import neighbour

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--note", type=Path, required=True)
    options, rest = parser.parse_known_args()
    seen = {"argv0": sys.argv[0], "path0": sys.path[0], "file": __file__, "rest": rest, "neighbour": neighbour.NAME}
    options.note.write_text(json.dumps(seen))
