"""Run a function in several processes that talk over gloo, and collect what it returns.

Processes are forked from the warm test process, so a pair costs fractions of a second, not the seconds of an import.
"""

import io
import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120


def warm() -> None:
    """Import what training imports when it needs it, so that forked processes need not, each for itself."""
    import matplotlib.pyplot
    import torch.distributed.checkpoint
    from transformers import LlamaForCausalLM

    assert matplotlib.pyplot and torch.distributed.checkpoint and LlamaForCausalLM


def on_ranks(function: Callable[..., Any], *args: Any, num: int = 2, group: bool = True) -> list[Any]:
    """What `function(*args)` returned on each of `num` ranks, by rank; plain data and tensors.

    Args:
        group: whether they talk already; else they find torchrun's environment, and what they make of it is theirs.

    Raises:
        AssertionError: with the traceback of the first rank that failed or never answered.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(num)]
        processes = [
            context.Process(
                target=_rank, args=(rank, num, folder if group else None, port, pipe[1], function, args), daemon=True
            )
            for rank, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, sending in pipes:
            sending.close()
        try:
            return [_received(receiving, rank) for rank, (receiving, _) in enumerate(pipes)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _received(pipe: Connection, rank: int) -> Any:
    assert pipe.poll(SECONDS), f"rank {rank} did not answer within {SECONDS} seconds"
    try:
        content = pipe.recv_bytes()
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    good, value = torch.load(io.BytesIO(content), weights_only=False)
    assert good, f"rank {rank}:\n{value}"
    return value


def free_port() -> int:
    """One that nobody listens to."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


def join_launch(rank: int, num: int, port: int) -> None:
    """Make this process look as if torchrun had started it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def _rank(
    rank: int, num: int, folder: str | None, port: int, pipe: Connection, function: Callable[..., Any], args: Any
) -> None:
    join_launch(rank, num, port)
    torch.manual_seed(0)
    try:
        if folder is not None:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num)
        answer = True, function(*args)
    except BaseException:  # to be shown by the parent, whatever it is
        answer = False, traceback.format_exc()
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
    pipe.close()
    if answer[0] and folder is not None:
        dist.barrier()  # nobody leaves while another still talks
