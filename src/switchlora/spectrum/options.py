"""Every option of `switchlora spectrum`, once: flags, YAML keys, checks, help and docs/spectrum.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from dataclasses import dataclass

from switchlora.errors import UserError
from switchlora.options import values as v
from switchlora.options.fields import MUST_BE_GIVEN, Options, option
from switchlora.training.options import LARGEST_THREADS

WHAT, RUN = "what is shown", "run"
INITIAL, NO_REFERENCE = "initial", "none"


@dataclass(frozen=True)
class SpectrumOptions(Options):
    """Which models to look into, and what to compare them with."""

    # fmt: off
    checkpoint: tuple[str, ...] | None = option(None, v.several(v.text), WHAT,
        "models to show side by side: output folders of finished runs, other folders that transformers can load, or "
        "hub names", metavar="FOLDER", unset=MUST_BE_GIVEN)
    labels: tuple[str, ...] | None = option(None, v.several(v.text), WHAT,
        "names of the models in figures and tables, in their order", metavar="NAME",
        unset="method, rank and seed of a run, else the folder's name")
    reference: str | None = option(None, v.text, WHAT,
        "W - W_reference is shown, too; initial: the weights that each run began with, made again from its seed; none; "
        "or a folder or hub name of a model of the same shape", metavar="initial|none|FOLDER",
        unset="initial for a run of switchlora pretrain, else none")
    output: str = option("runs/spectrum", v.text, RUN,
        "folder for spectrum.json, spectrum.html and spectrum.png", metavar="FOLDER")
    overwrite: bool = option(False, v.yes_no, RUN, "replace those files where they are there already")
    device: str = option("auto", v.device_name, RUN,
        "where to compute: auto, cpu, cuda or cuda:N", metavar="DEVICE")
    threads: int | None = option(None, v.integer(1, LARGEST_THREADS), RUN,
        "CPU threads of torch", metavar="N", unset="torch's choice")
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        num_models = len(self.checkpoint or ())
        if self.labels is not None and len(self.labels) != num_models:
            raise UserError(
                f"--labels {v.show(' '.join(self.labels))}: names {len(self.labels)} of {num_models} models; "
                "give one label for each --checkpoint, in the same order"
            )
