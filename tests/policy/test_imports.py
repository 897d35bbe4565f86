"""A file imports only from files above it, and importing the package is fast because it imports little."""

import re
import subprocess
import sys

import pytest

from tests.policy.imports import HEAVY, ORDER, direction_violations, heavy_violations
from tests.policy.source import REPOSITORY, listed, own_modules, read_modules, write_tree


def test_imports_go_one_way():
    violations = direction_violations(own_modules())
    assert violations == [], listed(violations)


def test_contributing_shows_the_order():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = page.split("## Who may import whom", 1)[1].split("```")[1].removeprefix("text")
    shown = re.findall(r"[\w/]+", re.sub(r"\(.*\)", "", block))
    ends = ("__main__", "")  # not worth a place on the page
    assert shown == [name.replace(".*", "/").replace(".", "/") for name in ORDER if name not in ends]


def test_nothing_heavy_is_imported_at_import():
    violations = heavy_violations(own_modules())
    assert violations == [], listed(violations)


def loaded_after(statement: str) -> set[str]:
    """Names of the top-level packages in memory after a fresh interpreter has run `statement`."""
    program = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_package_imports_without_heavy_packages():
    loaded = loaded_after("import switchlora")
    assert "switchlora" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_public_names_come_without_heavy_packages():
    loaded = loaded_after("import switchlora\nfor name in switchlora.__all__: getattr(switchlora, name)")
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_answers_without_torch():
    loaded = loaded_after(
        "from switchlora.cli import main\n"
        "for arguments in (['--help'], ['pretrain', '--help'], ['bench', '--help']):\n"
        "    try: code = main(arguments)\n"
        "    except SystemExit as stop: code = stop.code\n"
        "    assert not code, code"
    )
    assert "switchlora" in loaded
    assert loaded.isdisjoint({"torch", *HEAVY})


LEGAL = {
    "__init__.py": "from switchlora.optimizer import SwitchLora",
    "errors.py": "",
    "config.py": "from switchlora.errors import UserError",
    "optimizer.py": "from switchlora import config\nfrom .config import x",
    "data/__init__.py": "from switchlora.data.blocks import Blocks",
    "data/blocks.py": "from ..errors import UserError",
    "training/__init__.py": "",
    "training/loop.py": "from switchlora.training import options\nfrom switchlora import data",
    "training/options.py": "",
}


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("config.py", "from switchlora.optimizer import SwitchLora", "stands below"),
        ("config.py", "def f():\n    from .optimizer import SwitchLora", "stands below"),
        ("config.py", "import switchlora", "stands below"),
        ("training/options.py", "from switchlora.training import loop", "stands below"),
        ("training/options.py", "from . import loop", "stands below"),
        ("data/blocks.py", "from switchlora.config import x", "only errors"),
        ("data/blocks.py", "import switchlora.data", "circle"),
        ("helpers.py", "", "its place in ORDER"),
        ("errors.py", "import switchlora.nowhere", "no place"),
    ],
)
def test_an_import_against_the_order_is_found(tmp_path, path, text, complaint):
    assert direction_violations(read_modules(write_tree(tmp_path, LEGAL))) == []
    write_tree(tmp_path, {path: text})
    violations = direction_violations(read_modules(tmp_path))
    assert any(complaint in violation for violation in violations), violations


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import transformers", True),
        ("try:\n    from matplotlib import pyplot\nexcept ImportError:\n    pass", True),
        ("class C:\n    import datasets.load", True),
        ("def f():\n    import transformers", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers", False),
        ("from .datasets import x", False),
    ],
)
def test_a_heavy_import_is_found(tmp_path, text, found):
    assert bool(heavy_violations(read_modules(write_tree(tmp_path, {"config.py": text})))) is found


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("kernels/jit/bits.py", "import triton", False),
        ("kernels/jit/bits.py", "import transformers", True),
        ("kernels/jit/bits.py", "from switchlora.kernels.jit.exchange import x", False),
        ("kernels/tables.py", "import triton.language as tl", True),
        ("kernels/tables.py", "from switchlora.kernels.jit import exchange", True),
        ("kernels/tables.py", "from switchlora.kernels.jit.exchange import x", True),
        ("kernels/tables.py", "def f():\n    from switchlora.kernels.jit.exchange import x", False),
    ],
)
def test_kernels_may_import_triton_and_are_heavy_themselves(tmp_path, path, text, found):
    files = {"kernels/__init__.py": "", "kernels/jit/__init__.py": "", "kernels/jit/exchange.py": "import triton"}
    assert bool(heavy_violations(read_modules(write_tree(tmp_path, {**files, path: text})))) is found
