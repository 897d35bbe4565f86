"""Every option of `switchlora generate`, once: flags, YAML keys, checks, help and docs/generate.md follow from here.

Imports no torch, so that help and mistakes answer at once.
"""

from dataclasses import dataclass

from switchlora.errors import UserError
from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import Options, option

WHAT, HOW, RUN = "what is written", "how it is drawn", "run"
STDIN = "-"
COLDEST = 0.001  # below, logits leave the range of float32
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class GenerateOptions(Options):
    """Which model continues what."""

    # fmt: off
    checkpoint: str | None = shared.checkpoint(WHAT)
    prompt: tuple[str, ...] | None = option(None, v.verbatim_texts, WHAT,
        "texts to continue, each by itself; - reads one from standard input", metavar="TEXT",
        unset="a text from its beginning")
    max_new_tokens: int | None = option(None, v.integer(1), WHAT,
        "longest continuation", metavar="TOKENS", unset=f"{MAX_NEW_TOKENS}, or as many as the model has positions for")
    temperature: float = option(0.8, v.number(maximum=100.0), HOW,
        "divides the logits; 0: always the likeliest token", metavar="NUMBER")
    top_k: int = option(50, v.integer(0), HOW, "draw from so many of the likeliest tokens; 0: from all",
        metavar="TOKENS")
    top_p: float = option(1.0, v.number(maximum=1.0, open_below=True), HOW,
        "draw from the likeliest tokens that have this much of the probability together", metavar="FRACTION")
    seed: int = option(0, v.integer(0, v.LARGEST_SEED), HOW, "the same seed, prompt and machine write the same text",
        metavar="NUMBER")
    dtype: str | None = option(None, v.choice("fp32", "bf16"), RUN,
        "of weights and arithmetic", choices=("fp32", "bf16"), unset="as the weights are stored")
    device: str = shared.device(RUN)
    threads: int | None = shared.threads(RUN)
    # fmt: on

    def check(self) -> None:
        """Rules between options, and of more than one range.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        if 0 < self.temperature < COLDEST:
            raise UserError(
                f"--temperature {v.show(self.temperature)}: must be 0 or at least {COLDEST}; "
                "0 always takes the likeliest token"
            )
        if self.prompt is not None and self.prompt.count(STDIN) > 1:
            raise UserError("--prompt -: standard input can be read once; name it once")
