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


def test_convert_is_the_function_also_after_its_file_was_imported():
    """`switchlora.convert` is a file, too; Python puts a file's module into the package when it is imported."""
    code = (
        "from switchlora import SwitchLora, SwitchLoraLinear, convert; import switchlora.optimizer, switchlora.convert"
    )
    assert run(f"{code}\nimport switchlora; print(callable(convert), callable(switchlora.convert))") == "True True"
    assert run("from switchlora.convert import to_dense; from switchlora import convert; print(callable(convert))")


@pytest.mark.parametrize("name", switchlora.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert name in dir(switchlora)
    assert getattr(switchlora, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'convertt'"):
        _ = switchlora.convertt
