"""`python -m switchlora.golden FILE.npz`: print the deviations, exit 0 only within tolerance."""

import argparse
import sys
from pathlib import Path

from switchlora.errors import UserError
from switchlora.golden import replay_file


def main(arguments: list[str] | None = None) -> int:
    """Replay the files named; returns the exit status: 0 within tolerance, 1 beyond it, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m switchlora.golden",
        description="Replay trajectories recorded from the official implementation.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    status = 0
    for path in parser.parse_args(arguments).files:
        try:
            deviations = replay_file(path)
        except UserError as error:
            print(f"switchlora.golden: error: {error}", file=sys.stderr)
            return UserError.exit_code
        verdict = "within tolerance" if deviations.within else "BEYOND TOLERANCE"
        print(f"{path.name}: {verdict} (largest absolute deviation of each quantity, and its tolerance)\n{deviations}")
        status = max(status, 0 if deviations.within else 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
