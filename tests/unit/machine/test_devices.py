"""Devices, processes, memory, machines, and signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from switchlora.errors import UserError
from switchlora.machine import description, devices, signals

CPU = torch.device("cpu")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@without_gpu
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_cpu_is_chosen(name: str) -> None:
    assert devices.choose_device(name) == CPU


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=rf"--device {name}: cannot be used .*; use --device cpu"):
        devices.choose_device(name)


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda:x", "cuda:", "gpu", ""])
def test_other_devices_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"--device {name}: is not supported; use auto, cpu, cuda or cuda:N"):
        devices.choose_device(name)


def test_more_processes_than_gpus_are_refused_on_every_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    for rank in ("0", "1", "2"):
        ranks = devices.ranks_from_environment({**environment, "RANK": rank, "LOCAL_RANK": rank})
        with pytest.raises(UserError, match=r"--device auto: 3 processes on this machine .* it has 2; start 2, or"):
            devices.choose_device("auto", ranks)
    two = devices.ranks_from_environment({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"})
    assert devices.choose_device("auto", two) == torch.device("cuda", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu() -> None:
    gpu = devices.prepare("auto", None)
    assert gpu == devices.choose_device("cuda") and gpu.index is not None
    held = torch.ones(1 << 20, device=gpu)
    assert devices.peak_memory_bytes(gpu) >= held.nbytes
    assert description.describe_machine(gpu)["gpu"]
    with pytest.raises(UserError, match=r"--device cuda:99: this machine has GPUs 0 to"):
        devices.choose_device("cuda:99")


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert devices.prepare("cpu", 2) == CPU
        assert torch.get_num_threads() == 2 == description.describe_machine()["threads"]
        devices.prepare("cpu", None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}])
def test_one_process(environment: dict[str, str]) -> None:
    assert devices.ranks_from_environment(environment) == devices.LaunchedRank(0, 1)


def test_several_processes() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert devices.ranks_from_environment(environment) == devices.LaunchedRank(5, 8, 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "WORLD_SIZE=4: .*above RANK=4"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "first"}, "RANK=first: must be a whole number"),
    ],
)
def test_impossible_numbers_of_processes_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        devices.ranks_from_environment(environment)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_autocast(dtype: str, expected: torch.dtype) -> None:
    with devices.autocast_for(dtype, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_peak_memory_is_that_of_this_process() -> None:
    """Also of a process started by a bigger one: getrusage alone would report the starter's peak."""
    before = devices.peak_memory_bytes(CPU)
    held = b"\1" * (200 << 20)
    after = devices.peak_memory_bytes(CPU)
    assert after > 200 << 20 and after >= before
    program = (
        "import torch; from switchlora.machine import devices as d; print(d.peak_memory_bytes(torch.device('cpu')))"
    )
    child = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert 50 << 20 < child < after
    del held


def test_generator_states_come_back() -> None:
    states = devices.generator_states(CPU)
    drawn = torch.rand(3)
    devices.set_generator_states(CPU, states)
    assert torch.equal(torch.rand(3), drawn)


def test_a_machine_is_plain_data_and_equal_to_itself() -> None:
    import json

    machine = description.describe_machine(CPU)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["torch"] == torch.__version__ and machine["device"] == "cpu" and machine["num_cores"] >= 1
    assert machine["transformers"][0].isdigit() and machine["cpu"]
    assert description.same_machine(machine, machine) == []


def test_what_may_change_the_last_bits_is_named() -> None:
    machine = description.describe_machine(CPU)
    other = {**machine, "threads": 7, "torch": "1.0", "platform": "renamed", "num_cores": 99}
    assert description.same_machine(other, machine) == [
        f"threads 7 before, {machine['threads']} now",
        f"torch 1.0 before, {machine['torch']} now",
    ]


def handlers() -> tuple[Any, Any]:
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_becomes_a_flag(number: signal.Signals, interrupted: bool) -> None:
    before = handlers()
    with signals.StopRequest() as stop:
        assert not stop.requested and not stop.interrupted
        os.kill(os.getpid(), number)
        assert stop.requested and stop.interrupted is interrupted
        if number == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
    assert handlers() == before


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_that_interrupts_at_once(first: signal.Signals) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt), signals.StopRequest():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("not interrupted")
    assert handlers() == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_outside_the_main_thread_nothing_happens() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with signals.StopRequest() as stop:
            seen.append((stop.requested, handlers() == before))

    in_thread(work)
    assert seen == [(False, True)]


def test_threads_beyond_all_reason_are_refused_before_torch_starts_them() -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match=r"--threads 1000: .* use at most"):
        devices.prepare("cpu", 1000)
    assert torch.get_num_threads() == before
