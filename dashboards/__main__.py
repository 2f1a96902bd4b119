"""`python -m dashboards`: write what the chart ships of boards and alerts. `--check`: only say what is outdated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dashboards import shipped

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Exit status 1 if `--check` finds a file that is not as it would be written."""
    options = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something is outdated")
    wanted = shipped.files(ROOT)
    outdated = shipped.outdated(ROOT, wanted)
    if options.parse_args().check:
        for path in outdated:
            print(f"{path}: outdated; run python -m dashboards", file=sys.stderr)
        return 1 if outdated else 0
    shipped.write(ROOT, wanted)
    for path in outdated:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
