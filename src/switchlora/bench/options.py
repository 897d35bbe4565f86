"""Every option of `switchlora bench`, once: flags, YAML keys, checks, help and docs/bench.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

import dataclasses
import math
from dataclasses import dataclass

from switchlora.config import SwitchLoraConfig
from switchlora.errors import UserError
from switchlora.machine.cpu_products import PRODUCTS
from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import Options, option
from switchlora.training.options import LARGEST_BATCH_TOKENS
from switchlora.training.presets import LARGE, PRESETS, Preset

WHAT, SIZE, MACHINE, RUN = "what is compared", "size of a step", "machine", "run"

# The last four numbers are pretrain's defaults and have no use here.
SHAPES = {"bench": Preset(512, 8, 4, 1376, 2048, batch_size=16, seq_len=256, steps=1)}
SHAPES |= {name: preset for name, preset in PRESETS.items() if name not in LARGE}
METHODS = (
    *("full", "switchlora", "switchlora-thin", "switchlora-dense", "switchlora-fused", "switchlora-alternate"),
    *("lora-adapter", "peft", "galore"),
)
SWITCHING = tuple(method for method in METHODS if method.startswith("switchlora"))
SMALLEST_INTERVAL = 2.0 * SwitchLoraConfig.freeze_steps  # for which a counterpart rests
SMALLEST_ROUNDS, ROUNDS_OF_AN_INTERVAL = 3, 6  # six numbers are the fewest whose extremes enclose the median in 95 %
_DTYPES, _MOMENTS = ("fp32", "bf16"), ("own", "fp32", "bf16")


@dataclass(frozen=True)
class BenchOptions(Options):
    """What to measure, on which machine, and where to write it. None means "not said"; `resolved` decides it."""

    # fmt: off
    methods: tuple[str, ...] | None = option(None, v.several(v.choice(*METHODS)), WHAT,
        f"{', '.join(METHODS)}; full is always among them, for the ratios are to it; thin, dense: one of the two "
        "ways of the backward pass throughout; fused: factors stepped inside the backward pass; alternate: A and B "
        "move in turn",
        metavar="METHOD", unset="all; what is not installed is told and left out")
    ranks: tuple[int, ...] | None = option(None, v.several(v.integer(1)), WHAT,
        "ranks of all methods but full", metavar="VECTORS", unset="an eighth and a quarter of the hidden size")
    interval: float = option(40.0, v.number(open_below=True, or_inf=True), WHAT,
        "expected steps between two switches of one vector, throughout; inf: never", metavar="STEPS")
    switching_cost: bool = option(False, v.yes_no, WHAT,
        "beside each SwitchLoRA row the same with an infinite interval, and the difference of their optimizers: all "
        "that switching costs")
    moments: str = option("own", v.choice(*_MOMENTS), WHAT,
        "of the optimizers, with --dtype bf16. own: as each method has them (fp32 for SwitchLoRA, torch's follow "
        "the parameters); fp32, bf16: the same for all", choices=_MOMENTS)
    factor_dtype: str = option("fp32", v.choice(*_DTYPES), WHAT,
        "of SwitchLoRA's factors", choices=_DTYPES)
    model: str = option("bench", v.choice(*SHAPES), SIZE,
        "shape: bench (hidden size 512, ffn 1376, 4 layers, 8 heads, vocabulary 2048) or a preset of pretrain",
        choices=tuple(SHAPES))
    num_layers: int | None = option(None, v.integer(1), SIZE,
        "decoder layers, to measure the layers of a shape that does not fit as a whole",
        metavar="LAYERS", unset="those of the shape")
    sequences: tuple[int, ...] = option((4, 16), v.several(v.integer(1)), SIZE,
        "sequences per step; each is a table of its own", metavar="N")
    seq_len: int = option(256, v.integer(2), SIZE,
        "length of a sequence", metavar="TOKENS")
    dtype: str = option("fp32", v.choice(*_DTYPES), SIZE,
        "of the weights and of the arithmetic", choices=_DTYPES)
    checkpoint_activations: bool = option(False, v.yes_no, SIZE,
        "recompute activations in the backward pass")
    device: str = shared.device(MACHINE, "measure")
    threads: int | None = shared.threads(MACHINE, "torch's choice, which is then set and recorded")
    cpu_products: str = option("torch", v.choice(*PRODUCTS), MACHINE,
        "who multiplies float32 matrices on the CPU; onednn: twice as fast on AMD processors with AVX-512",
        choices=PRODUCTS)
    compile: bool = option(False, v.yes_no, MACHINE,
        "compile the decoder layers of every model with torch.compile")
    peak_tflops: float | None = option(None, v.number(open_below=True), MACHINE,
        "10^12 FLOPs per second that the device can do at best in this dtype; gives the model FLOP utilisation",
        metavar="X", unset="not shown")
    steps: int = option(30, v.integer(1), RUN,
        "measured rounds: steps of each method", metavar="ROUNDS")
    warmup_steps: int = option(2, v.integer(1), RUN,
        "steps of each method before the measured ones, after one in which FLOPs and bytes are counted",
        metavar="STEPS")
    peak_memory: bool = option(False, v.yes_no, RUN,
        "also measure the peak memory of each method alone, in a process of its own (takes a minute or more)")
    seed: int = option(0, v.integer(0, v.LARGEST_SEED), RUN,
        "of weights, tokens, switches and the order within each round", metavar="N")
    output: str | None = option(None, v.text, RUN,
        "FILE.json for the results, with the chart beside it as FILE.png; or a folder for bench.json and bench.png",
        metavar="PATH", unset="runs/bench-MODEL-DTYPE-TIME.json")
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        if self.steps < SMALLEST_ROUNDS:
            raise UserError(
                f"--steps {self.steps}: a median and its spread need {SMALLEST_ROUNDS} rounds at least, and a 95 % "
                f"interval {ROUNDS_OF_AN_INTERVAL}; use --steps 30"
            )
        _check_ranks(self)
        if self.interval < SMALLEST_INTERVAL and not set(self.all_methods).isdisjoint(SWITCHING):
            raise UserError(
                f"--interval {self.interval:g}: must be at least {SMALLEST_INTERVAL:g}, twice the steps for which a "
                f"switched vector's counterpart rests; use --interval {SMALLEST_INTERVAL:g} or more"
            )
        most = max(self.sequences)
        if most * self.seq_len > LARGEST_BATCH_TOKENS:
            raise UserError(
                f"--sequences {most}: of --seq-len {self.seq_len} are {most * self.seq_len} tokens in a step, and at "
                f"most {LARGEST_BATCH_TOKENS} are possible; give fewer"
            )
        if self.switching_cost and (self.interval == math.inf or set(self.all_methods).isdisjoint(SWITCHING)):
            raise UserError(
                "--switching-cost: nothing is switched; name a switchlora method in --methods, and give a finite "
                "--interval"
            )
        if self.dtype == "fp32" and self.moments == "bf16":
            raise UserError("--moments bf16: is for bf16 weights; add --dtype bf16, or leave --moments out")
        if self.dtype == "fp32" and self.factor_dtype == "bf16":
            raise UserError("--factor-dtype bf16: is for bf16 weights; add --dtype bf16, or leave --factor-dtype out")

    @property
    def shape(self) -> Preset:
        """The model's shape."""
        shape = SHAPES[self.model]
        return shape if self.num_layers is None else dataclasses.replace(shape, num_layers=self.num_layers)

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The ranks, decided: those given, or an eighth and a quarter of the hidden size."""
        return self.ranks or (self.shape.hidden_size // 8, self.shape.hidden_size // 4)

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods, decided and in the order of `METHODS`, full among them."""
        return tuple(method for method in METHODS if self.methods is None or method in (*self.methods, "full"))

    def resolved(self) -> "BenchOptions":
        """The same, with methods and ranks decided, for the record."""
        return dataclasses.replace(
            self, methods=self.all_methods, ranks=self.all_ranks, num_layers=self.shape.num_layers
        )


def _check_ranks(options: BenchOptions) -> None:
    hidden = options.shape.hidden_size
    for r in options.all_ranks:
        if r >= hidden:
            raise UserError(
                f"--ranks {r}: must be smaller than the hidden size of {options.model}, {hidden}; "
                f"{hidden // 8} and {hidden // 4} are the ones the paper's tables use"
            )
        if r == 1 and not set(options.all_methods).isdisjoint(SWITCHING):
            raise UserError(
                "--ranks 1: can never switch, for a vector and its partner are not switched in one step; use 2 or more"
            )
