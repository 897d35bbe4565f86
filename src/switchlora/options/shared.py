"""Options that several commands have, with the same meaning in each."""

from collections.abc import Sequence
from typing import Any

from switchlora.errors import UserError
from switchlora.options import values as v
from switchlora.options.fields import MUST_BE_GIVEN, option

LARGEST_THREADS = 1024


def device(group: str, to: str = "compute", **more: Any) -> Any:
    """Where a command does its work."""
    return option("auto", v.device_name, group, f"where to {to}: auto, cpu, cuda or cuda:N", metavar="DEVICE", **more)


def threads(group: str, unset: str = "torch's choice", **more: Any) -> Any:
    """How many threads torch has."""
    return option(None, v.integer(1, LARGEST_THREADS), group, "CPU threads of torch", metavar="N", unset=unset, **more)


def checkpoint(group: str) -> Any:
    """One model."""
    return option(
        None, v.text, group,
        "the model: output folder of a finished run, another folder that transformers can load, or a hub name",
        metavar="FOLDER", unset=MUST_BE_GIVEN,
    )  # fmt: skip


def checkpoints(group: str) -> Any:
    """Several."""
    return option(
        None, v.several(v.text), group,
        "models to show side by side: output folders of finished runs, other folders that transformers can load, or "
        "hub names", metavar="FOLDER", unset=MUST_BE_GIVEN,
    )  # fmt: skip


def labels(group: str, where: str) -> Any:
    """What they are called."""
    return option(
        None, v.several(v.text), group, f"names of the models in {where}, in their order", metavar="NAME",
        unset="method, rank and seed of a run, else the folder's name",
    )  # fmt: skip


def check_labels(checkpoints: Sequence[str] | None, labels: Sequence[str] | None) -> None:
    """Refuse more or fewer names than models.

    Raises:
        UserError: says how many there are of both.
    """
    num_models = len(checkpoints or ())
    if labels is not None and len(labels) != num_models:
        raise UserError(
            f"--labels {v.show(' '.join(labels))}: names {len(labels)} of {num_models} models; "
            "give one label for each --checkpoint, in the same order"
        )
