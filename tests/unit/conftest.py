"""What several unit tests ask for."""

import pytest


@pytest.fixture
def two_processes():
    """torch's stand-in for a process group: this is rank 0 of 2, and nobody answers."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()
