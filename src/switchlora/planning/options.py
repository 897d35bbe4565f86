"""Every option of `switchlora plan`, once: flags, YAML keys, checks, help and docs/plan.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from switchlora.errors import UserError
from switchlora.options import values as v
from switchlora.options.fields import Options, option
from switchlora.training.options import PretrainOptions, assignments, method_name

WHAT, WHERE, SPEED, RUN = "what is trained", "on what", "how fast", "run"
LARGEST_DEVICES = 2**20


@dataclass(frozen=True)
class PlanOptions(Options):
    """A training that nobody has started."""

    # fmt: off
    model: str = option("1.3b", v.text, WHAT,
        "as for switchlora pretrain: a preset, a config.json, a folder or a hub name", metavar="NAME|PATH")
    method: str = option("switchlora", method_name, WHAT,
        "how to train, as for switchlora pretrain", metavar="NAME|FILE")
    r: int | None = option(None, v.integer(1), WHAT,
        "vectors of A and of B in every layer", metavar="VECTORS", unset="a quarter of the model's hidden size")
    batch_size: int | None = option(None, v.integer(1), WHAT,
        "sequences per optimizer step, of all devices together", metavar="SEQUENCES", unset="as pretrain")
    micro_batch_size: int | None = option(None, v.integer(1), WHAT,
        "sequences in one forward pass of one device", metavar="SEQUENCES", unset="its share of the batch")
    seq_len: int | None = option(None, v.integer(2), WHAT,
        "tokens per sequence", metavar="TOKENS", unset="as pretrain")
    dtype: str = option("bf16", v.choice("fp32", "bf16", "bf16-mixed"), WHAT,
        "how weights are stored and arithmetic is done, as for pretrain", choices=("fp32", "bf16", "bf16-mixed"))
    checkpoint_activations: bool = option(False, v.yes_no, WHAT,
        "recompute activations in the backward pass")
    pretrain: Mapping[str, Any] = option((), assignments, WHAT,
        "more options of switchlora pretrain, such as moment_dtype=bf16", metavar="NAME=VALUE")
    gpus: int = option(1, v.integer(1, LARGEST_DEVICES), WHERE,
        "devices, with one process each", metavar="N")
    gpu_memory: int = option(80_000_000_000, v.byte_size, WHERE,
        "of each, such as 80GB or 24GiB", metavar="BYTES")
    parallel: str | None = option(None, v.strategy, WHERE,
        "ddp, fsdp, or none for one device", metavar="ddp|fsdp|none", unset="none for one device, else ddp")
    peak_tflops: float = option(989.0, v.number(open_below=True), SPEED,
        "of a device, in the arithmetic of --dtype; that of an H100 in bfloat16", metavar="TFLOPS")
    utilisation: float = option(0.4, v.number(maximum=1.0, open_below=True), SPEED,
        "the share of that which products reach", metavar="SHARE")
    bandwidth: float = option(50.0, v.number(open_below=True), SPEED,
        "of a device's link to the others; 50: 400 Gb/s", metavar="GB/S")
    output: str | None = option(None, v.text, RUN,
        "a file for the plan as JSON", metavar="FILE", unset="none is written")
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        if self.strategy == "none" and self.gpus > 1:
            raise UserError(f"--parallel none: {self.gpus} devices would each train alone; use ddp or fsdp")
        if self.strategy != "none" and self.gpus == 1:
            raise UserError(f"--parallel {self.parallel}: needs more than one device; give --gpus 2 or more")
        for name in sorted(self.pretrain.keys() & type(self).specs().keys()):
            raise UserError(f"--pretrain {name}: is an option of plan itself; give --{name.replace('_', '-')}")
        if self.pretrain.get("warm_start_steps"):
            raise UserError(
                "--pretrain warm_start_steps: until its end a run is like one with --method full; plan that"
            )

    @property
    def strategy(self) -> str:
        """How devices share the work."""
        return self.parallel or ("none" if self.gpus == 1 else "ddp")

    def run(self, **changes: Any) -> PretrainOptions:
        """The run that is planned, resolved; `changes` to it."""
        from switchlora.training.resolve import resolve

        own = ("model", "method", "r", "batch_size", "micro_batch_size", "seq_len", "dtype", "checkpoint_activations")
        values = {name: getattr(self, name) for name in own}
        if self.strategy == "fsdp" and self.dtype == "bf16":  # which sums gradients of one dtype only
            values["factor_dtype"] = "bf16"
        return resolve(PretrainOptions.merge({**values, "parallel": "none", **self.pretrain, **changes}))
