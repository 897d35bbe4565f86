"""Where curves go besides metrics.jsonl: TensorBoard, Weights & Biases, or nowhere.

A tracker is a copy for looking at; metrics.jsonl is the record. So a tracker may be changed or left out when a run
goes on, and nothing is ever read back from one.
"""

import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from switchlora.errors import UserError


class Tracker(Protocol):
    """A place for numbers by step. A context manager that closes itself."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send the numbers among `values` of `step`; what is no number is left out."""

    def close(self) -> None:
        """Send what is still waiting."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_tracker(name: str, folder: Path, config: Mapping[str, Any], *, resume_step: int = 0) -> Tracker:
    """The tracker for `--track none|tensorboard|wandb`.

    Args:
        folder: of the run; its name is the run's, and a run in the same folder continues the same curves.
        config: what to file the run under (plain values).
        resume_step: steps done; what an earlier process sent of later ones is superseded.

    Raises:
        UserError: an unknown name, or its package is not installed.
    """
    makers: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
        "none": NoTracker,
        "tensorboard": TensorBoardTracker,
        "wandb": WandbTracker,
    }
    if name not in makers:
        raise UserError(f"--track {name}: is not known; use tensorboard, wandb or none")
    return makers[name](Path(folder), config, resume_step)


def require_package(name: str) -> None:
    """Refuse a tracker whose package is not installed, without importing it, so before anything slow begins.

    Raises:
        UserError: says how to install it.
    """
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # without origin: a mere folder of that name, as wandb leaves behind
        raise _missing(name)


class _Closing:
    """Closes at the end of a `with` block."""

    def close(self) -> None:
        """See `Tracker`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoTracker(_Closing):
    """Nowhere."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        pass

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""


class TensorBoardTracker(_Closing):
    """Event files in FOLDER/tensorboard; look with `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._writer: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
        )
        if not resume_step:
            table = "\n".join(["| option | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in config.items())])
            self._writer.add_text("config", table)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in _numbers(values).items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker(_Closing):
    """A run of the project `switchlora`; WANDB_MODE and WANDB_PROJECT mean what they always do."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resume_step: int) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        where = folder.resolve()
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "switchlora"),
            name=where.name,
            id=hashlib.sha256(str(where).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        # A resumed run repeats steps, which wandb's own counter refuses; ours is a number like the others.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**_numbers(values), "step": step})

    def close(self) -> None:
        self._run.finish()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers, without the step itself."""
    return {
        key: value
        for key, value in values.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _missing(package: str) -> UserError:
    return UserError(
        f"--track {package}: needs a package that is not installed; pip install {package}, or --track none"
    )
