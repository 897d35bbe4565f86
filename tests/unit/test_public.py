"""The public names: they exist, they are what they say in whatever order they are asked for, and they come late."""

import subprocess
import sys

import pytest

import switchlora

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "numpy", "tokenizers", "pyarrow")


def run(code: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert run(f"import sys, switchlora; print([n for n in {HEAVY} if n in sys.modules])") == "[]"


@pytest.mark.parametrize("name", ["SwitchLoraConfig", "UserError", "PretrainOptions"])
def test_settings_and_errors_need_no_torch(name):
    assert run(f"import sys, switchlora; switchlora.{name}; print('torch' in sys.modules)") == "False"


def test_the_core_needs_no_transformers():
    code = "import sys; from switchlora import SwitchLora, to_dense; print([n for n in ('transformers', 'datasets', "
    assert run(code + "'matplotlib') if n in sys.modules])") == "[]"


def test_no_file_has_the_name_of_a_public_function():
    """Python would put the file's module into the package in the function's place when the file is imported."""
    code = "import switchlora, switchlora.optimizer, switchlora.training.loop; from types import ModuleType; "
    assert (
        run(code + "print([n for n in switchlora.__all__ if isinstance(getattr(switchlora, n), ModuleType)])") == "[]"
    )


@pytest.mark.parametrize("name", switchlora.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert name in dir(switchlora)
    assert getattr(switchlora, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'convertt'"):
        _ = switchlora.convertt
