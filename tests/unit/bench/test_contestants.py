"""Who takes part, and what is said of who cannot."""

import pytest

from switchlora.bench import contestants as module
from switchlora.bench.contestants import Contestant, contestants, installed
from switchlora.bench.options import BenchOptions
from switchlora.errors import UserError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the optional packages."""
    monkeypatch.setattr(module, "installed", lambda package: False)


def test_names() -> None:
    assert Contestant("full").name == "full"
    assert Contestant("switchlora", 64).name == "switchlora r=64"


def test_full_once_and_the_others_at_every_rank() -> None:
    rows = contestants(BenchOptions(methods=("switchlora", "lora-adapter"), ranks=(8, 16)))
    names = ["full", "switchlora r=8", "switchlora r=16", "lora-adapter r=8", "lora-adapter r=16"]
    assert [row.name for row in rows] == names
    assert not any(row.absence for row in rows)


def test_each_row_that_switches_gets_one_that_never_does() -> None:
    rows = contestants(BenchOptions(methods=("switchlora-fused", "lora-adapter"), ranks=8, switching_cost=True))
    names = ["full", "switchlora-fused r=8", "switchlora-fused r=8, never switched", "lora-adapter r=8"]
    assert [row.name for row in rows] == names


@pytest.mark.usefixtures("bare")
def test_a_missing_package_is_told() -> None:
    absent = {row.name: row.absence for row in contestants(BenchOptions(ranks=8)) if row.absence}
    assert (
        absent["peft r=8"]
        == "not installed (peft), in the checkout: .venv/bin/pip install -c constraints.txt -e '.[bench]'"
    )
    assert "galore_torch" in absent["galore r=8"]


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("method", ["peft", "galore"])
def test_a_missing_package_that_was_asked_for_is_a_mistake(method: str) -> None:
    with pytest.raises(UserError, match=rf"--methods {method}: not installed .*pip install"):
        contestants(BenchOptions(methods=method))


def test_moments_that_a_method_cannot_have_are_told() -> None:
    if not installed("galore_torch") or not installed("bitsandbytes"):
        pytest.skip("galore-torch is not installed")
    options = {"ranks": 8, "dtype": "bf16", "moments": "fp32"}
    (galore,) = [row for row in contestants(BenchOptions(**options)) if row.method == "galore"]  # type: ignore[arg-type]
    assert "use --moments own or bf16" in galore.absence
    with pytest.raises(UserError, match="--methods galore: not available"):
        contestants(BenchOptions(methods="galore", **options))  # type: ignore[arg-type]


def test_a_folder_is_not_a_package(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("torch") and not installed("no_such_package_anywhere")
    (tmp_path / "hollow").mkdir()  # type: ignore[operator]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not installed("hollow")
