"""Every option of `switchlora compare`, once: flags, YAML keys, checks, help and docs/compare.md follow from here.

What is compared is a mapping of labels to options of `switchlora pretrain`; what all runs share is another. Both are
checked here by making the options of the runs, so that no mistake waits for the third hour. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from switchlora.errors import UserError
from switchlora.methods import OF_METHODS, method_named
from switchlora.options import values as v
from switchlora.options.fields import Options, option
from switchlora.training.options import PretrainOptions, assignments, method_name

WHAT, TUNING, RUNNING = "what is compared", "learning rates", "running"
OURS = {
    "seed": "seeds",
    "output": "output",
    "resume": "output",
    "overwrite": "output",
    "dry_run": "dry_run",
    "track": "output",
}  # of pretrain's options, those that compare sets itself, and what to use instead
TIED = "tied"
LONGEST_LABEL = 80
SAME_FOR_ALL = ("steps", "batch_size", "seq_len", "model", "data", "tokenizer", "eval_tokens", "device", "threads",
                "cpu_products")  # fmt: skip


def _methods(value: object) -> dict[str, dict[str, Any]]:
    """Names of methods, or a mapping of labels to options of `switchlora pretrain`."""
    if isinstance(value, Mapping):
        entries = {v.text(label): dict(settings or {}) for label, settings in value.items() if _is_settings(settings)}
    else:
        entries = {name: {} for name in v.several(v.text)(() if value is None else value)}
    if not entries:
        raise v.Refused("must name at least one")
    for label, settings in entries.items():
        if "/" in label or not label.isprintable() or label.startswith(".") or len(label) > LONGEST_LABEL:
            raise v.Refused(
                f"{v.show(label)} becomes the name of a file, so it must hold no / and not begin with a dot"
            )
        try:
            settings["method"] = method_name(settings.get("method", label))
        except v.Refused as rule:
            way_out = "" if "method" in settings else "; a label of your own needs a line 'method: NAME'"
            raise v.Refused(f"{v.show(settings.get('method', label))}: {rule}{way_out}") from None
    return entries


def _is_settings(value: object) -> bool:
    if value is None or isinstance(value, Mapping):
        return True
    raise v.Refused("must hold 'option: value' lines, or nothing, below each label")


@dataclass(frozen=True)
class CompareOptions(Options):
    """What to compare, how its learning rates are found, and how the runs are spread over the machine."""

    # fmt: off
    methods: Mapping[str, Mapping[str, Any]] = option(("full", "lora", "switchlora"), _methods, WHAT,
        "names of methods; in YAML also a mapping: a label, and below it options of switchlora pretrain that differ; "
        "r, lr and other_lr may be lists there, and other_lr may be 'tied' (to lr)", metavar="NAME")
    pretrain: Mapping[str, Any] = option((), assignments, WHAT,
        "options of switchlora pretrain that all runs share; in YAML a mapping", metavar="NAME=VALUE")
    ranks: tuple[int, ...] | None = option(None, v.several(v.integer(1)), WHAT,
        "of the methods that have one", metavar="VECTORS", unset="a quarter of the model's hidden size")
    seeds: tuple[int, ...] = option((0, 1, 2), v.several(v.integer(0, v.LARGEST_SEED)), WHAT,
        "of the runs that count", metavar="N")
    baseline: str | None = option(None, v.text, WHAT,
        "label that the others are held against", metavar="LABEL", unset="full, else the first")
    finetuned: tuple[str, ...] | None = option(None, v.several(v.text), WHAT,
        "train nothing: show results of switchlora finetune side by side, with paired tests against the first",
        metavar="FOLDER", unset="none")
    tune: bool = option(True, v.yes_no, TUNING,
        "look for both learning rates of every method and rank first; off: every lr and other_lr runs with every seed")
    tune_seed: int = option(1000, v.integer(0, v.LARGEST_SEED), TUNING,
        "of the runs that look for learning rates, which count for nothing else", metavar="N")
    tune_steps: int | None = option(None, v.integer(1), TUNING,
        "length of those runs", metavar="STEPS", unset="as the others")
    tune_rank: int | None = option(None, v.integer(1), TUNING,
        "look at this rank alone, and use what was found at the others", metavar="VECTORS", unset="at every rank")
    tune_factor: float = option(2.0, v.number(minimum=1.05, maximum=100.0), TUNING,
        "between neighbouring learning rates, of which three digits are kept", metavar="X")
    tune_runs: int = option(24, v.integer(1), TUNING,
        "of a method and rank at most; a search that ends there is marked", metavar="RUNS")
    output: str = option("runs/compare", v.text, RUNNING,
        "folder for runs/, results/ and report.html; the same command goes on there", metavar="FOLDER")
    jobs: int | None = option(None, v.integer(1, 256), RUNNING,
        "runs side by side", metavar="RUNS", unset="one per GPU, or per CPU core with one thread each")
    processes: int = option(1, v.integer(1, 1024), RUNNING,
        "of each run, started by torchrun; pretrain's parallel says how they share the work", metavar="N")
    hours: float | None = option(None, v.number(), RUNNING,
        "stop after this time, with checkpoints; 0: only write the report of what is there",
        metavar="HOURS", unset="until all is done")
    dry_run: bool = option(False, v.yes_no, RUNNING, "print runs and hours, then stop")
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        if self.finetuned is not None and len(self.finetuned) < 2:
            raise UserError(f"--finetuned {v.show(self.finetuned[0])}: is one result; give two or more")
        for name in OURS.keys() & self.pretrain.keys():
            raise UserError(
                f"--pretrain {name}: is set for every run; use compare's own --{OURS[name].replace('_', '-')}"
            )
        if "r" in self.pretrain:
            raise UserError("--pretrain r: ranks are what is compared; use compare's own --ranks, or r below a method")
        if "method" in self.pretrain:
            raise UserError("--pretrain method: is what is compared; name methods in --methods")
        for label, settings in self.methods.items():
            for name in sorted(OURS.keys() & settings.keys()):
                raise UserError(
                    f"--methods {v.show(label)}: {name} is set for every run; use compare's own "
                    f"--{OURS[name].replace('_', '-')}"
                )
            for name in sorted(settings.keys() & set(SAME_FOR_ALL)):
                raise UserError(f"--methods {v.show(label)}: {name} must be the same for all; set it under pretrain")
            for name in sorted((OF_METHODS - method_named(settings["method"]).uses) & settings.keys()):
                raise UserError(f"--methods {v.show(label)}: {name} has no use with {settings['method']}; leave it out")
        if self.baseline is not None and self.baseline not in self.methods:
            close = v.nearest(self.baseline, self.methods)
            raise UserError(
                f"--baseline {v.show(self.baseline)}: is none of the methods; "
                + (f"did you mean {close}?" if close else f"give one of {', '.join(self.methods)}")
            )
        self._check_tuning()

    def _check_tuning(self) -> None:
        if self.tune_rank is not None and self.ranks is not None and self.tune_rank not in self.ranks:
            raise UserError(
                f"--tune-rank {self.tune_rank}: is none of --ranks {' '.join(map(str, self.ranks))}; give one of them"
            )
        if self.tune and self.tune_seed in self.seeds:
            raise UserError(
                f"--tune-seed {self.tune_seed}: is one of --seeds, and a run must not judge rates that it chose; give "
                "another, or --no-tune"
            )

    @property
    def baseline_label(self) -> str:
        """The label that the others are held against."""
        return self.baseline or ("full" if "full" in self.methods else next(iter(self.methods)))


def rates_of(label: str, name: str, value: object) -> tuple[float, ...]:
    """One learning rate or an ascending list of them.

    Raises:
        UserError: not a number above 0, or two that are the same in the six digits that names of files have.
    """
    try:
        values = v.several(v.number(open_below=True))(value)
        if len({f"{rate:g}" for rate in values}) < len(values):
            raise v.Refused("two of them are the same in six digits; leave one out")
    except v.Refused as rule:
        raise UserError(f"--methods {v.show(label)}: {name} {v.show(value)}: {rule}") from None
    return tuple(sorted(values))


def pretrain_options(label: str, settings: Mapping[str, Any]) -> PretrainOptions:
    """Options of one run, with errors that name the label.

    Raises:
        UserError: an unknown option or a value that it refuses.
    """
    try:
        return PretrainOptions.merge(settings)
    except UserError as error:
        raise UserError(f"--methods {v.show(label)}: {error}") from None


def ranks_of(label: str, value: object) -> tuple[int | None, ...]:
    """One rank or a list of them; (None,) where none is given.

    Raises:
        UserError: not a whole number above 0, or one twice.
    """
    if value is None:
        return (None,)
    try:
        return tuple(v.several(v.integer(1))(value))
    except v.Refused as rule:
        raise UserError(f"--methods {v.show(label)}: r {v.show(value)}: {rule}") from None
