"""Replay recorded trajectories of the official implementation with our layer and optimizer.

    python -m switchlora.golden FILE.npz

The file holds the start, the data, the uniform draws (and in random order the candidates drawn) of a run of the
paper's public code, and everything that run went through. We start from the same numbers, draw the same numbers, and
compare every recorded quantity: exit status 0 only if all are within tolerance. The recorded W is the paper's frozen
base, our W - s B A. Format: tests/data/golden/README.md.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from switchlora.errors import UserError
from switchlora.golden.linear import replay_linear
from switchlora.golden.llama import replay_llama
from switchlora.golden.replay import Deviations

__all__ = ["Deviations", "replay_file"]


def replay_file(path: Path) -> Deviations:
    """Replay one file and return the deviations of all recorded quantities.

    Raises:
        UserError: (a ValueError) the file is missing, is not of this format, or records settings that we refuse.
    """
    data = _read(path)
    try:
        meta = json.loads(str(data["meta_json"]))
        replay = replay_llama if "tokens" in data else replay_linear
        return replay(data, meta)
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; the format is in tests/data/golden/README.md") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: meta_json does not parse ({error}); give a golden file") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a golden .npz file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as .npz ({reason}); give a golden file") from None
