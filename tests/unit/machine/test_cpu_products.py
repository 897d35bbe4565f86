"""Products by oneDNN are float32 products, and whoever asks for them gets them or is told.

oneDNN looks once in a process at what it may use, so where numbers count a new process is asked.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from switchlora.errors import UserError
from switchlora.machine import cpu_products
from switchlora.machine.description import describe_machine
from switchlora.machine.devices import prepare
from switchlora.training.models import build_model

EXACT = """
import torch
from switchlora.machine.description import describe_machine
from switchlora.machine.devices import prepare
prepare("cpu", None, "onednn")
assert torch.get_float32_matmul_precision() == "medium" and describe_machine()["cpu_products"] == "onednn"
torch.manual_seed(0)
for m, k, n in ((512, 256, 384), (64, 2048, 128), (33, 65, 17)):
    a, b = torch.randn(m, k), torch.randn(n, k)
    exact = a.double() @ b.T.double()
    for product in (a @ b.T, torch.zeros(m, n).addmm_(a, b.T), a.T.contiguous().T @ b.T):
        assert (product - exact).abs().max() < 1e-5 * exact.abs().max()  # bfloat16 would be off by 1e-3
"""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(cpu_products.ISA, cpu_products.AVX512)
    monkeypatch.setattr(cpu_products, "_is_float32", lambda: True)
    yield
    torch.set_float32_matmul_precision("highest")


def test_products_are_as_exact_as_torchs_own() -> None:
    environment = {name: value for name, value in os.environ.items() if name != cpu_products.ISA}
    subprocess.run([sys.executable, "-c", EXACT], check=True, env=environment)


def test_torch_is_left_as_it_is_or_put_back() -> None:
    torch.set_float32_matmul_precision("high")
    prepare("cpu", None)
    assert torch.get_float32_matmul_precision() == "high"
    for products in ("onednn", "onednn", "torch"):
        prepare("cpu", None, products)
    assert torch.get_float32_matmul_precision() == "highest"
    assert describe_machine()["cpu_products"] is None


@pytest.mark.parametrize("rounds", [True, False])
def test_products_that_may_be_rounded_are_refused(monkeypatch: pytest.MonkeyPatch, rounds: bool) -> None:
    if rounds:
        monkeypatch.setattr(cpu_products, "_is_float32", lambda: False)
    else:
        monkeypatch.setenv(cpu_products.ISA, "AVX512_CORE_AMX")
    with pytest.raises(UserError, match=r"--cpu-products onednn: .* set ONEDNN_MAX_CPU_ISA=AVX512_CORE .*or use torch"):
        prepare("cpu", None, "onednn")
    assert torch.get_float32_matmul_precision() == "highest"


def test_attention_is_written_out_and_the_same() -> None:
    tokens = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(0))
    logits = {}
    for products in ("torch", "onednn"):
        prepare("cpu", None, products)
        model = build_model("tiny", seed=0)
        cpu_products.write_out_attention(model)
        cpu_products.use("torch")
        logits[products] = model(input_ids=tokens).logits.detach()
        assert (model.config._attn_implementation == "eager") == (products == "onednn")
    torch.testing.assert_close(logits["torch"], logits["onednn"], rtol=1e-4, atol=1e-5)
