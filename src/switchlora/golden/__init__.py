"""Replay recorded trajectories of the official implementation with our layer and optimizer.

    python -m switchlora.golden FILE.npz

The file holds the start, the data, the uniform draws (and in random order the candidates drawn) of a run of the
paper's public code, and everything that run went through. We start from the same numbers, draw the same numbers, and
compare every recorded quantity: exit status 0 only if all are within tolerance. The recorded W is the paper's frozen
base, our W - s B A. Format: tests/data/golden/README.md.
"""

from pathlib import Path

from switchlora.errors import UserError
from switchlora.golden.format import read, read_meta
from switchlora.golden.linear import replay_linear
from switchlora.golden.llama import replay_llama
from switchlora.golden.replay import Deviations

__all__ = ["Deviations", "replay_file"]


def replay_file(path: Path) -> Deviations:
    """Replay one file and return the deviations of all recorded quantities.

    Raises:
        UserError: (a ValueError) the file is missing, is not of this format, or records settings that we refuse.
    """
    try:
        data = read(path)
        replay = replay_llama if "tokens" in data else replay_linear
        return replay(data, read_meta(data))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
