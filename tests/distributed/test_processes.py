"""What processes of a run tell each other when one of them fails or leaves."""

from typing import Any

import pytest
import torch

from switchlora.errors import Preempted, ProcessLostError, UserError
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import Processes, processes
from tests.distributed.ranks import on_ranks

CPU = torch.device("cpu")


def fail_on_the_second(error: Exception) -> str:
    ranks = Processes(rank=torch.distributed.get_rank(), world_size=2)

    def function() -> None:
        if ranks.rank == 1:
            raise error

    with pytest.raises(type(error)) as raised:
        ranks.on_each(function)
    return str(raised.value)


@pytest.mark.parametrize("error", [UserError("--data x: is not there"), Preempted("terminated")])
def test_what_one_meets_ends_all_alike(error: Exception) -> None:
    assert on_ranks(fail_on_the_second, error) == [str(error), str(error)]


def leave_or_wait(options: PretrainOptions) -> Any:
    try:
        with processes(options, CPU) as ranks:
            if ranks.is_first:
                ranks.sum(torch.ones(1))
    except ProcessLostError as error:
        return str(error), error.exit_code
    return None


def test_who_waits_for_one_that_has_left_says_so() -> None:
    options = PretrainOptions(parallel="ddp")
    waited, left = on_ranks(leave_or_wait, options, group=False)
    assert left is None
    assert waited is not None and "another process of this run has ended" in waited[0] and waited[1] == 75
