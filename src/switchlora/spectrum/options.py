"""Every option of `switchlora spectrum`, once: flags, YAML keys, checks, help and docs/spectrum.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from dataclasses import dataclass

from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import Options, option

WHAT, RUN = "what is shown", "run"
INITIAL, NO_REFERENCE = "initial", "none"


@dataclass(frozen=True)
class SpectrumOptions(Options):
    """Which models to look into, and what to compare them with."""

    # fmt: off
    checkpoint: tuple[str, ...] | None = shared.checkpoints(WHAT)
    labels: tuple[str, ...] | None = shared.labels(WHAT, "figures and tables")
    reference: str | None = option(None, v.text, WHAT,
        "W - W_reference is shown, too; initial: the weights that each run began with, made again from its seed; none; "
        "or a folder or hub name of a model of the same shape", metavar="initial|none|FOLDER",
        unset="initial for a run of switchlora pretrain, else none")
    output: str = option("runs/spectrum", v.text, RUN,
        "folder for spectrum.json, spectrum.html and spectrum.png", metavar="FOLDER")
    overwrite: bool = option(False, v.yes_no, RUN, "replace those files where they are there already")
    device: str = shared.device(RUN)
    threads: int | None = shared.threads(RUN)
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        shared.check_labels(self.checkpoint, self.labels)
