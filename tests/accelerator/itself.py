"""What the pretend GPU notices, made to happen on purpose; run in a process that has one. Prints a JSON object."""

import json
import threading

import numpy as np
import torch

from switchlora.kernels.exchange import exchange_
from tests.accelerator.pretend_gpu.device import counts

GPU = torch.device("cuda")


def mixed_devices() -> str:
    try:
        torch.mm(torch.ones(3, 3, device=GPU), torch.ones(3, 3))
    except RuntimeError as error:
        return str(error)
    return ""


def waits() -> dict[str, dict[str, int]]:
    """Of each line alone."""
    t, pinned = torch.ones(4, device=GPU), torch.ones(4).pin_memory()
    found = {}
    torch.cuda.synchronize()
    for name, work in {
        "nothing": lambda: (t + 1, t.to(torch.bfloat16), pinned.to(GPU, non_blocking=True)),
        "item": lambda: float(t[0]),
        "mask": lambda: t[t > 0],
        "unpinned": lambda: torch.ones(4).to(GPU, non_blocking=True),
        "blocking": lambda: pinned.to(GPU),
        "back": lambda: t.cpu(),
        "put by a mask": lambda: t.index_put_((t > 0,), t),
        "equal": lambda: torch.equal(t, t),
        "synchronize": lambda: torch.cuda.current_stream().synchronize(),
    }.items():
        counts.reset()
        work()
        found[name] = counts.waits
    return found


def late_copy() -> list[bool]:
    """Whether a copy is there at once, and after waiting for it."""
    there, here = torch.ones(4, device=GPU), torch.empty(4, pin_memory=True)
    here.copy_(there, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    at_once = bool((here == 1).all())
    event.synchronize()
    return [at_once, bool((here == 1).all())]


def used_by_another_stream(wait: bool = True, record: bool = True, passed: bool = False) -> dict[str, int]:
    """Of a tensor that is freed at once."""
    counts.reset()
    side, t = torch.cuda.Stream(), torch.ones(4, device=GPU)
    if wait:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        t * 2
    if record:
        t.record_stream(side)
    if passed:
        side.synchronize()
    del t
    return counts.hazards


def reused_memory() -> dict[str, int]:
    """Of a tensor of this stream, first written on another."""
    counts.reset()
    side, t = torch.cuda.Stream(), torch.empty(4, device=GPU)
    with torch.cuda.stream(side):
        t.fill_(1)
    t.record_stream(side)
    return counts.hazards


def read_by_a_kernel(wait: bool) -> dict[str, int]:
    """Of vectors that another stream has written and a kernel exchanges, and a factor that it finds by its address."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        arriving, factor = torch.ones(1, 4, device=GPU), torch.ones(3, 4, device=GPU)
    if wait:
        torch.cuda.current_stream().wait_stream(side)
    counts.reset()
    exchange_([factor], np.array([0]), np.array([1]), arriving)
    return counts.hazards


def changed_under_a_copy() -> dict[str, int]:
    counts.reset()
    here = torch.ones(4, pin_memory=True)
    here.to(GPU, non_blocking=True)
    here.zero_()
    torch.cuda.synchronize()
    return counts.hazards


def fetched_twice() -> dict[str, int]:
    counts.reset()
    there, here = torch.ones(4, device=GPU), torch.empty(4, pin_memory=True)
    for _ in range(2):
        here.copy_(there, non_blocking=True)
    torch.cuda.synchronize()
    return counts.hazards


def thread_of_the_backward_pass() -> bool:
    """Whether it is another one than this, as with CUDA."""
    threads = []
    x = torch.ones(3, device=GPU, requires_grad=True)
    x.register_hook(lambda grad: threads.append(threading.get_ident()))
    x.sum().backward()
    return threads != [threading.get_ident()]


def bytes_held() -> list[int]:
    """What a tensor of 1,000 numbers adds, and the peak with one of 2,000 that is gone."""
    before = torch.cuda.memory_allocated()
    kept = torch.empty(1000, device=GPU)
    torch.cuda.reset_peak_memory_stats()
    torch.empty(2000, device=GPU)
    added = torch.cuda.memory_allocated() - before
    del kept
    return [added, torch.cuda.max_memory_allocated() - before]


if __name__ == "__main__":
    print(json.dumps({
        "mixed devices": mixed_devices(), "waits": waits(), "late copy": late_copy(),
        "hazards": {
            "none": used_by_another_stream(), "passed": used_by_another_stream(record=False, passed=True),
            "no wait": used_by_another_stream(wait=False), "no record": used_by_another_stream(record=False),
            "reused": reused_memory(), "changed": changed_under_a_copy(), "fetched twice": fetched_twice(),
            "kernel": read_by_a_kernel(wait=True), "early kernel": read_by_a_kernel(wait=False),
        },
        "thread": thread_of_the_backward_pass(), "bytes": bytes_held(),
    }))  # fmt: skip
