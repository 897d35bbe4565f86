"""What was switched, and what was asked for: nothing is clamped in silence."""

import dataclasses
from collections.abc import Iterable

from switchlora.config import SwitchLoraConfig
from switchlora.switching import Outcome


@dataclasses.dataclass
class SwitchCounts:
    """Vectors of A and B over all layers: to be switched, and switched; counterparts of those, and reset (cleared)."""

    switches_requested: int = 0
    switches_done: int = 0
    resets_requested: int = 0
    resets_done: int = 0


@dataclasses.dataclass(frozen=True)
class SwitchStats:
    """`last`: of the last step, `total`: since the start of the run."""

    last: SwitchCounts
    total: SwitchCounts


COUNTS = tuple(field.name for field in dataclasses.fields(SwitchCounts))


def count(outcomes: Iterable[Outcome], config: SwitchLoraConfig) -> SwitchCounts:
    """The counts of one step. Every vector that is switched asks for the reset of its counterpart."""
    outcomes = list(outcomes)
    sides = 2 if config.switches_B else 1
    requested = sides * sum(outcome.requested for outcome in outcomes)
    done = sum(len(switch.slots) for outcome in outcomes for switch in outcome.switches.values())
    return SwitchCounts(requested, done, done, done if config.reset else 0)
