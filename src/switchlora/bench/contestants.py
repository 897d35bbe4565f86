"""Who takes part: a method at a rank, or the reason why it cannot.

Nothing is built here. A package that is not installed is told, and its rows say so; that is an error only
where the user asked for it by name.
"""

import importlib
import importlib.util
from dataclasses import dataclass

from switchlora.bench.options import SWITCHING, BenchOptions
from switchlora.errors import UserError, way_to_install

PACKAGES = {"peft": ("peft",), "galore": ("galore_torch", "bitsandbytes")}  # galore_torch imports bitsandbytes
INSTALL = way_to_install("bench")


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    r: None for full rank; absence: why it is not measured, "" if it is; never_switches: with an infinite interval,
    which says of the row that does switch what that costs.
    """

    method: str
    r: int | None = None
    absence: str = ""
    never_switches: bool = False

    @property
    def name(self) -> str:
        """As in tables: 'switchlora r=64'."""
        name = self.method if self.r is None else f"{self.method} r={self.r}"
        return f"{name}, never switched" if self.never_switches else name


def contestants(options: BenchOptions) -> list[Contestant]:
    """All rows, in the order of the table.

    Raises:
        UserError: a method that was asked for by name cannot take part.
    """
    rows = [Contestant("full")]
    for method in options.all_methods:
        if method == "full":
            continue
        absence = why_absent(method, options)
        if absence and options.methods is not None:
            raise UserError(f"--methods {method}: {absence}")
        for r in options.all_ranks:
            rows.append(Contestant(method, r, absence))
            if options.switching_cost and method in SWITCHING:
                rows.append(Contestant(method, r, absence, never_switches=True))
    return rows


def why_absent(method: str, options: BenchOptions) -> str:
    """Why a method cannot take part on this machine with these options; "" if it can."""
    missing = [package for package in PACKAGES.get(method, ()) if not installed(package)]
    if missing:
        return f"not installed ({', '.join(missing)}), {INSTALL}"
    if method == "galore" and options.moments == "fp32" and options.dtype == "bf16":
        return "not available: galore-torch keeps its moments in the gradients' dtype; use --moments own or bf16"
    return ""


def import_or_say(package: str) -> None:
    """Import a package for the first time, which may fail in any way where versions do not fit each other.

    Raises:
        ImportError: its own reason.
    """
    try:
        importlib.import_module(package)
    except Exception as error:
        raise ImportError(f"{package}: {error}") from error


def installed(package: str) -> bool:
    """Whether a package is there, without importing it. A mere folder of that name does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
