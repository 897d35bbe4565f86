"""Lines for the person at the terminal: of several processes, the first one speaks."""

import os
import sys


def say(line: str) -> None:
    """A line on stdout."""
    if speaks():
        print(line, flush=True)


def speaks() -> bool:
    """Whether this process is the one that talks to people: of several (torchrun's RANK), the first."""
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return not (rank.isdecimal() and world_size.isdecimal() and 0 < int(rank) < int(world_size))


def print_warning(message: str) -> None:
    """One line on stderr, from the first process."""
    if speaks():
        print(f"switchlora: warning: {message}", file=sys.stderr, flush=True)
