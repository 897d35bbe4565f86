"""Wait until something is so, and fail where it never is: a test that goes on in silence tests something else."""

import subprocess
import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], object],
    process: "subprocess.Popen[str] | None" = None,
    *,
    seconds: float = 60.0,
    poll_seconds: float = 0.05,
) -> None:
    """Until the condition holds; an error when `process` ends before, or it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"it ended first: {process.communicate()}"
        assert time.monotonic() < deadline, f"not in {seconds:g} s"
        time.sleep(poll_seconds)
