"""Every option of `switchlora evaluate`, once: flags, YAML keys, checks, help and docs/evaluate.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from dataclasses import dataclass

from switchlora.errors import UserError
from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import Options, option

MODELS, TEXT, TASKS, RUN = "models", "text", "tasks of lm-eval", "run"
SPLITS = ("all", "valid")
DEFAULT_SEQ_LEN = 512  # of a model that is no run of ours, if it has so many positions


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Which models, on what text, on which tasks."""

    # fmt: off
    checkpoint: tuple[str, ...] | None = shared.checkpoints(MODELS)
    labels: tuple[str, ...] | None = shared.labels(MODELS, "the table")
    data: tuple[str, ...] | None = option(None, v.texts, TEXT,
        "text, as pretrain's --data takes it", metavar="SOURCE",
        unset="the validation part of the data of each run; no text where only tasks are asked for")
    split: str = option("all", v.choice(*SPLITS), TEXT,
        "which part of --data: all of it, or what pretrain would keep for validation", choices=SPLITS)
    max_tokens: int | None = option(None, v.integer(2), TEXT,
        "stop after so many tokens", metavar="TOKENS", unset="all of the text; pretrain's eval_tokens for its data")
    seq_len: int | None = option(None, v.integer(2), TEXT,
        "tokens that the model sees at once", metavar="TOKENS",
        unset=f"the run's, else {DEFAULT_SEQ_LEN} or as many as the model has positions for")
    tasks: tuple[str, ...] | None = option(None, v.several(v.text), TASKS,
        "names of tasks or groups of lm-eval, such as lambada_openai or arc_easy", metavar="NAME", unset="none")
    include_path: str | None = option(None, v.text, TASKS,
        "folder with task files (.yaml) of your own", metavar="FOLDER", unset="none")
    num_fewshot: int | None = option(None, v.integer(0, 1000), TASKS,
        "examples before each question", metavar="N", unset="as each task has it")
    limit: int | None = option(None, v.integer(1), TASKS,
        "only the first questions of each task, for a trial", metavar="N", unset="all")
    output: str = option("runs/evaluate", v.text, RUN, "folder for evaluate.json", metavar="FOLDER")
    overwrite: bool = option(False, v.yes_no, RUN, "replace that file where it is there already")
    batch_size: int = option(8, v.integer(1), RUN, "sequences at a time", metavar="SEQUENCES")
    dtype: str | None = option(None, v.choice("fp32", "bf16"), RUN,
        "of weights and arithmetic", choices=("fp32", "bf16"), unset="as the weights are stored")
    device: str = shared.device(RUN)
    threads: int | None = shared.threads(RUN)
    # fmt: on

    def check(self) -> None:
        """Rules between options.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        shared.check_labels(self.checkpoint, self.labels)
        if self.tasks is None:
            for name in ("include_path", "num_fewshot", "limit"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name.replace('_', '-')} {v.show(getattr(self, name))}: is for --tasks, of which none is "
                        "given; name some, or leave it out"
                    )
