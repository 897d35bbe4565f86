"""Every option of `switchlora finetune`, once: flags, YAML keys, checks, help and docs/finetune.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from dataclasses import dataclass

from switchlora.errors import UserError
from switchlora.finetuning.glue import TASKS
from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import MUST_BE_GIVEN, Options, option

WHAT, HOW, FACTORS, SUBSET, RUN = (
    "what is trained", "how", "of lora and switchlora", "of subset", "run",
)  # fmt: skip
METHODS = ("full", "lora", "switchlora", "subset")
SILOS = ("tensor", "model")
DEFAULT_LR = {
    "full": (3e-5, 1e-4, 3e-4), "subset": (3e-5, 1e-4, 3e-4),
    "lora": (3e-3, 1e-2, 3e-2), "switchlora": (3e-3, 1e-2, 3e-2),
}  # fmt: skip
DEFAULT_SEQ_LEN = 128


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """Which model, on which task of GLUE, by which method."""

    # fmt: off
    checkpoint: str | None = shared.checkpoint(WHAT)
    task: str | None = option(None, v.choice(*TASKS), WHAT, "of GLUE", choices=tuple(TASKS), unset=MUST_BE_GIVEN)
    data: str | None = option(None, v.text, WHAT,
        "folder with train.tsv and dev.tsv as GLUE has them (also .xz, .gz), or the folder above it", metavar="FOLDER",
        unset="nyu-mll/glue on the hub")
    method: str = option("full", v.choice(*METHODS), WHAT,
        "all weights; factors beside the linear layers, switched or not; or few entries of all weights. The new head "
        "always trains in full", choices=METHODS)
    epochs: int = option(3, v.integer(1, 10_000), HOW, "passes over train", metavar="N")
    lr: tuple[float, ...] | None = option(None, v.several(v.number(maximum=1e3, open_below=True)), HOW,
        "peak learning rate; of several the best one on a held-out part of train is taken", metavar="NUMBER",
        unset="3e-5 1e-4 3e-4; for lora and switchlora 3e-3 1e-2 3e-2")
    head_lr: float | None = option(None, v.number(maximum=1e3, open_below=True), HOW,
        "of the new head", metavar="NUMBER", unset="as --lr")
    batch_size: int = option(16, v.integer(1), HOW, "rows in a step", metavar="ROWS")
    seq_len: int | None = option(None, v.integer(4), HOW,
        "longest row; the longer text of a longer one is cut", metavar="TOKENS",
        unset=f"{DEFAULT_SEQ_LEN}, or as many as the model has positions for")
    warmup: float = option(0.06, v.number(maximum=1.0), HOW,
        "part of the steps in which the learning rate rises; then it falls to 0", metavar="FRACTION")
    weight_decay: float = option(0.0, v.number(maximum=10.0), HOW, "decoupled, times the learning rate",
        metavar="NUMBER")
    clip: float = option(1.0, v.number(), HOW, "largest norm of all gradients; 0: not clipped", metavar="NUMBER")
    held_out: float = option(0.1, v.number(maximum=0.5, open_below=True), HOW,
        "part of train on which learning rates are compared; dev is for the result alone", metavar="FRACTION")
    r: int = option(8, v.integer(1), FACTORS, "rank of the factors", metavar="VECTORS")
    lora_alpha: float = option(1.0, v.number(open_below=True), FACTORS,
        "scaling is lora_alpha / r", metavar="NUMBER")
    interval: float = option(40.0, v.number(minimum=10.0), FACTORS,
        "average number of steps between two switches of a vector, at the start (switchlora)", metavar="STEPS")
    epsilon: float = option(1e-3, v.number(maximum=1.0, open_below=True), SUBSET,
        "part of each silo that may differ from the checkpoint", metavar="FRACTION")
    silo: str = option("model", v.choice(*SILOS), SUBSET,
        "what that part is counted in: each tensor, or all of them together", choices=SILOS)
    apply_delta: str | None = option(None, v.text, SUBSET,
        "train nothing: apply this delta file to --checkpoint, and leave the model in --output", metavar="FILE",
        unset="none")
    seeds: int = option(5, v.integer(1, 1000), RUN, "runs with the chosen learning rate: seeds 0, 1, 2, ...",
        metavar="N")
    output: str | None = option(None, v.text, RUN,
        "folder for finetune.json; the same command goes on there", metavar="FOLDER",
        unset="runs/finetune-TASK-METHOD")
    overwrite: bool = option(False, v.yes_no, RUN, "discard what is there and start anew")
    save: bool = option(False, v.yes_no, RUN, "keep the model of every seed (subset: its delta is always kept)")
    device: str = shared.device(RUN)
    threads: int | None = shared.threads(RUN)
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        if self.method == "switchlora" and self.r < 2:
            raise UserError(f"--r {self.r}: switchlora needs at least 2; raise it, or use --method lora")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to try, in ascending order."""
        return tuple(sorted(self.lr or DEFAULT_LR[self.method]))
