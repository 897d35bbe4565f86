"""The ways a run ends early, and the exit code each one gets on the command line.

A mistake of the user is one line that names the option, the value, the rule and the way out. A run whose numbers
stopped being finite, and one that was told to make room, are neither the user's mistake nor ours, and a script
that starts runs must be able to tell them apart.
"""


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints the message alone and exits with 2."""

    exit_code = 2


class NonFiniteError(RuntimeError):
    """A loss or gradient that is no longer finite. The command line prints the message and exits with 3."""

    exit_code = 3


class RanksDifferError(RuntimeError):
    """Ranks that must be equal are not. The command line prints the message and exits with 3."""

    exit_code = 3


class Preempted(BaseException):
    """SIGTERM, after a checkpoint was written if there was one to write. The command line exits with 75 (try again).

    Like KeyboardInterrupt no Exception, which libraries take for a failure of their own: raised while transformers
    imports its optional packages, one would be lost, or become an error of the user's.
    """

    exit_code = 75


class ProcessLostError(RuntimeError):
    """Another process of a run has ended. The command line prints the message and exits with 75 (try again)."""

    exit_code = 75


def way_to_install(extra: str = "") -> str:
    """The command that brings what an extra needs ("": what all needs); without the pins, pip may replace torch by
    gigabytes of CUDA."""
    what = f".[{extra}]" if extra else "."
    return f"in the checkout: .venv/bin/pip install -c constraints.txt -e '{what}'"
