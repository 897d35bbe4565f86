"""The pretend GPU notices what it is for: otherwise the tests beside this one could not fail."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def seen(printed: Callable[[str], Any]) -> Any:
    return printed("itself")


def test_devices_are_not_mixed(seen):
    assert "is given a CPU tensor" in seen["mixed devices"]


def test_it_counts_what_the_host_waits_for(seen):
    assert seen["waits"] == {
        "nothing": {},
        "item": {"item": 1},
        "mask": {"index by a mask": 1},
        "unpinned": {"copy from host memory that is not pinned": 1},
        "blocking": {"copy from host memory": 1},
        "back": {"copy to host memory": 1},
        "put by a mask": {"index by a mask": 1},
        "equal": {"equal": 1},
        "synchronize": {"synchronize": 1},
    }


def test_a_copy_to_pinned_memory_is_there_when_it_was_waited_for(seen):
    assert seen["late copy"] == [False, True]


def test_it_records_what_streams_may_do_to_each_other(seen):
    hazards = seen["hazards"]
    assert hazards["none"] == hazards["passed"] == hazards["kernel"] == {}
    assert sum(hazards["no wait"].values()) == 1
    assert hazards["no record"] == {"memory is freed that a stream may be using": 1}
    assert sum(hazards["reused"].values()) == 1
    assert hazards["early kernel"] == {"exchange": 2}
    assert hazards["changed"] == {"host memory is written that a copy may be reading": 1}
    assert hazards["fetched twice"] == {"host memory is fetched to that a copy may be using": 1}


def test_backward_passes_run_in_a_thread_of_their_own(seen):
    assert seen["thread"]


def test_it_counts_bytes_as_the_allocator_of_cuda_does(seen):
    assert seen["bytes"] == [4096, 4096 + 8192]
