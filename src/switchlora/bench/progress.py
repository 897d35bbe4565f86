"""How long a measurement will take, for the person who waits."""

import time
from collections.abc import Callable

SILENCE_SECONDS = 30.0


class Progress:
    """Says so before the first round, by the last warm-up round, and then every half minute.

    Args:
        num_rounds: that are measured.
        say: takes a line.
        clock: in seconds.
    """

    def __init__(
        self, num_rounds: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._num_rounds, self._say, self._clock = num_rounds, say, clock
        self._start = self._told = clock()

    def begin(self) -> None:
        """A warm-up round begins."""
        self._start = self._clock()

    def announce(self, what: str) -> None:
        """The rounds begin, of which each takes what the last warm-up round took."""
        now = self._clock()
        self._say(f"{what}, {self._num_rounds} rounds: about {readable((now - self._start) * self._num_rounds)}")
        self._start = self._told = now

    def tell(self, num_done: int) -> None:
        """So many are done."""
        now = self._clock()
        if now - self._told < SILENCE_SECONDS or num_done == self._num_rounds:
            return
        left = (now - self._start) / num_done * (self._num_rounds - num_done)
        self._say(f"round {num_done} of {self._num_rounds}, about {readable(left)} to go")
        self._told = now


def readable(seconds: float) -> str:
    """'40 s' or '3 min'."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
