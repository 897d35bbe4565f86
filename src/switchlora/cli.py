"""The command `switchlora`: which commands there are, flags made from their options, and errors of one line.

A command is a line in COMMANDS: a class of options and a function that takes them, both named as
"module:attribute" and imported when the command is asked for, so that help and mistakes cost no import of torch.
argparse only splits words here; whether a value is valid is the options' own business (`options.fields`), so
that a flag, a YAML key and a Python argument get the same answer.

Exit codes: 0 done; 2 the user's mistake, or no space left; 3 a loss or gradient that is not finite, or
ranks that differ; 75 SIGTERM, after a
checkpoint; 130 Ctrl-C.
Anything else that goes wrong is our mistake and keeps its traceback.
"""

import argparse
import difflib
import errno
import importlib
import importlib.metadata
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from switchlora.errors import NonFiniteError, Preempted, ProcessLostError, RanksDifferError, UserError, way_to_install
from switchlora.machine.console import speaks
from switchlora.machine.files import os_error_behind
from switchlora.options.fields import Options, Spec, flag
from switchlora.options.values import nearest, show


@dataclass(frozen=True)
class Command:
    """What a command does, its class of options, and the function that gets them ("module:attribute")."""

    summary: str
    options: str
    run: str


COMMANDS = {
    "pretrain": Command(
        "pre-train a language model with SwitchLoRA, LoRA or all weights",
        "switchlora.training.options:PretrainOptions",
        "switchlora.training.loop:pretrain",
    ),
    "bench": Command(
        "measure step time, FLOPs and memory of SwitchLoRA beside full-rank AdamW, LoRA, PEFT and GaLore",
        "switchlora.bench.options:BenchOptions",
        "switchlora.bench.command:bench",
    ),
    "compare": Command(
        "compare methods at equal tokens on identical batches, each with learning rates of its own",
        "switchlora.compare.options:CompareOptions",
        "switchlora.compare.command:compare",
    ),
    "spectrum": Command(
        "show the singular values of a model's matrices, and of what training changed in them",
        "switchlora.spectrum.options:SpectrumOptions",
        "switchlora.spectrum.command:spectrum",
    ),
    "evaluate": Command(
        "evaluate finished models: perplexity and bits per byte on a text, and the tasks of lm-eval",
        "switchlora.evaluation.options:EvaluateOptions",
        "switchlora.evaluation.command:evaluate",
    ),
    "finetune": Command(
        "fine-tune a finished model on a task of GLUE, with several seeds",
        "switchlora.finetuning.options:FinetuneOptions",
        "switchlora.finetuning.command:finetune",
    ),
    "generate": Command(
        "let a finished model continue a text, and show it as it writes",
        "switchlora.generation.options:GenerateOptions",
        "switchlora.generation.command:generate",
    ),
    "plan": Command(
        "say what a training would need on so many devices: memory, traffic, FLOPs, and what fits",
        "switchlora.planning.options:PlanOptions",
        "switchlora.planning.command:plan",
    ),
}

# Of the operating system's errors, those that the user can mend; the others are ours.
MENDABLE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "choose a path that you may use, or change its permissions",
    errno.EPERM: "choose a path that you may use, or change its permissions",
    errno.EROFS: "choose a path that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EISDIR: "choose a path that is not a folder",
}

GOES_ON = ("pretrain", "finetune", "compare")  # where an earlier start of the same command was

# What every installation has (pyproject.toml).
NEEDED = ("matplotlib", "numpy", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except (UserError, NonFiniteError, RanksDifferError, Preempted, ProcessLostError) as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        goes_on = bool(words) and words[0] in GOES_ON
        return _complain("interrupted" + ("; the same command goes on from what is whole" if goes_on else ""), 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        if isinstance(error, ModuleNotFoundError) and error.name in NEEDED:
            return _complain(f"{error.name} is not installed for {sys.executable}; {way_to_install()}", 2)
        cause = os_error_behind(error, MENDABLE)
        if cause is None:
            raise
        where = f" ({show(str(cause.filename))})" if cause.filename else ""
        way_out = MENDABLE[cause.errno or 0]
        return _complain(f"{cause.strerror}{where}; {way_out}, then start again", 2)


def _reader_is_gone() -> bool:
    """Whether stdout's reader has seen enough, such as `head`; then Python shall not complain about it at its end."""
    try:
        os.write(sys.stdout.fileno(), b"\n")  # nothing at all can always be written
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"switchlora {_version()}")
        return 0
    if argv[0] not in COMMANDS:
        close = nearest(argv[0].lstrip("-"), COMMANDS)
        hint = f"did you mean {close}? " if close else ""
        hint += f"the commands are: {', '.join(COMMANDS)}" if len(COMMANDS) > 1 or not close else ""
        kind = "option" if argv[0].startswith("-") else "command"
        raise UserError(f"unknown {kind} {show(argv[0])}: {hint.strip()}; switchlora --help says more")
    command = COMMANDS[argv[0]]
    options = parse_flags(argv[0], command, argv[1:])
    if options is not None:
        _load(command.run)(options)
    return 0


def parse_flags(name: str, command: Command, argv: list[str]) -> Options | None:
    """The options that a command's flags and its YAML file give, or None when help was asked for and printed.

    Raises:
        UserError: an unknown flag (with the nearest valid one), a missing value, or whatever the options refuse.
    """
    kind: type[Options] = _load(command.options)
    parser = _parser(name, command, kind)
    known, unknown = parser.parse_known_args(argv)
    flags = vars(known)
    if flags.pop("help", False):
        print(parser.format_help(), end="")
        return None
    if unknown:
        _refuse(name, unknown[0], [flag(option) for option in ("config", "help", *kind.specs())])
    config = flags.pop("config", None)
    return kind.merge(kind.yaml_values(config) if config is not None else {}, flags)


class _Parser(argparse.ArgumentParser):
    """argparse, without its usage dump and its exit."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        raise UserError(f"{text[:200]}; {self.prog} --help says more")


def _parser(name: str, command: Command, kind: type[Options]) -> argparse.ArgumentParser:
    """Flags from the options' specs. SUPPRESS leaves out what was not given, so that YAML is not overruled."""
    parser = _Parser(
        prog=f"switchlora {name}",
        usage=f"switchlora {name} [--config FILE.yaml] [--OPTION VALUE ...]",
        description=f"{command.summary[0].upper()}{command.summary[1:]}. Every option can also be a line "
        "'option: value' of a YAML file (--config); flags win.",
        formatter_class=lambda prog: _HelpFormatter(prog, max_help_position=30, width=100),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for option, spec in kind.specs().items():
        if spec.group not in groups:
            groups[spec.group] = parser.add_argument_group(spec.group)
        groups[spec.group].add_argument(flag(option), dest=option, **_argument(kind, option, spec))
    first = next(iter(groups.values()))
    first.add_argument("--config", metavar="FILE", help="YAML file with options; flags win over it")
    first.add_argument("-h", "--help", action="store_true", help="print this and stop")
    return parser


def _argument(kind: type[Options], option: str, spec: Spec) -> dict[str, Any]:
    help_text = f"{spec.help} (default: {spec.default})".replace("%", "%%")
    default = kind.__dataclass_fields__[option].default
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "help": help_text}
    if kind.takes_several(option):
        return {"nargs": "+", "action": "extend", "metavar": spec.metavar, "help": help_text}
    return {"metavar": spec.metavar, "help": help_text}


def _refuse(name: str, word: str, flags: list[str]) -> NoReturn:
    if not word.startswith("-"):
        raise UserError(
            f"unexpected argument {show(word)}: every value follows its option; switchlora {name} --help says more"
        )
    given = word.split("=")[0]
    close = difflib.get_close_matches(given, flags, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown option {show(given)}: {hint}switchlora {name} --help lists all")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: switchlora COMMAND [--OPTION VALUE ...]\n\n"
        f"commands:\n{commands}\n\n"
        "switchlora COMMAND --help lists the options of a command; switchlora --version prints the version."
    )


def _version() -> str:
    try:
        return importlib.metadata.version("switchlora")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: run from its source)"


def _load(reference: str) -> Any:
    module, attribute = reference.split(":")
    return getattr(importlib.import_module(module), attribute)


def _complain(message: str, exit_code: int) -> int:
    if speaks():
        print(f"switchlora: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


class _HelpFormatter(argparse.HelpFormatter):
    """Does not break a line within a name such as apollo-mini."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
