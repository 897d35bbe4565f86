"""Steps on an accelerator: nothing of them lies elsewhere, nobody waits for it, and they are the CPU's steps."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.accelerator.cases import CASES, DIMS

NUM_SHAPES = len(set(itertools.pairwise(DIMS)))
EXACT = 1e-6  # float32, summed in another order
ROUGH = 1e-2  # Newton-Schulz runs in bfloat16 on an accelerator; and what is stored so may be rounded the other way
TOLERANCES = {"Muon's rule": ROUGH, "along the gradient": ROUGH} | {case: ROUGH for case in CASES if "bfloat" in case}


@pytest.fixture(scope="module")
def seen(printed: Callable[[str], Any]) -> Any:
    return printed("steps")


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(seen, case):
    assert seen[case]["waits"] == {}
    assert seen[case]["devices"] == ["cuda"]


@pytest.mark.parametrize("case", CASES)
def test_streams_wait_for_each_other(seen, case):
    assert seen[case]["hazards"] == {}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_the_cpu(seen, case):
    ours = seen[case]
    tolerance = TOLERANCES.get(case, EXACT)
    assert ours["losses"] == pytest.approx(ours["expected"], rel=tolerance)
    assert ours["weights"] <= tolerance
    on_cpu, there = ours["switches"]
    assert on_cpu == there
    assert (there > 10) == (case != "never switched")


@pytest.mark.parametrize("case", CASES)
def test_a_copy_and_a_loaded_state_go_on_as_the_original_does(seen, case):
    assert seen[case]["copied"]


@pytest.mark.parametrize("case", CASES)
def test_kernels_run_where_they_can(seen, case):
    settings = CASES[case]
    eager = settings.get("fused") is False or "rule" in settings or settings.get("dtype") == torch.float64
    assert seen[case]["fused"] == (not eager)


def test_the_pool_is_in_host_memory_unless_told_otherwise(seen):
    assert seen["float32"]["host_bytes"] > 0
    assert seen["pool on the device"]["host_bytes"] == 0


def test_what_a_switch_launches_does_not_know_how_many_vectors_go(seen):
    """Of each shape two exchanges with their tables, and on each side a block that comes and one that goes
    (docs/cuda.md). The first step also sends for its own candidates: otherwise the step before has done it."""
    (never,) = set(seen["never switched"]["launches"])
    often = seen["twice as often"]
    assert sum(often["switches"]) > 2 * 1.5 * NUM_SHAPES * len(often["launches"])
    assert set(often["launches"][1:]) == {never + NUM_SHAPES * (2 + 2 + 2 * 2)}
