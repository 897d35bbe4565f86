"""A method of your own, from a Python file: `--method path/to/idea.py` puts it into the same harness as ours.

The file defines METHOD, an object with what `protocol.Method` lists; deriving from one of our classes is the shortest
way. It is executed like any program that one starts. docs/methods/own.md shows one.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any, cast

from switchlora.errors import UserError
from switchlora.methods.protocol import OF_METHODS, Method

CALLS = ("prepare", "optimizer", "metrics", "totals", "finish")
VALUES = ("name", "lr", "init_lora_weights", "uses", "shards")


def is_file(name: str) -> bool:
    """Whether the name of a method is that of a file."""
    return name.endswith(".py")


def own_method(path: str) -> Method:
    """The METHOD of a file.

    Raises:
        UserError: no such file, one that does not run, or one without a whole METHOD.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--method {path}: no such file; give the path of a .py file that defines METHOD")
    return _loaded(file.resolve())


@functools.cache
def _loaded(file: Path) -> Method:
    spec = importlib.util.spec_from_file_location(f"switchlora_method_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--method {file}: the file fails with {type(error).__name__}: {error}; mend it") from error
    return _checked(getattr(module, "METHOD", None), file)


def _checked(method: Any, file: Path) -> Method:
    if method is None:
        raise UserError(f"--method {file}: defines no METHOD; end the file with METHOD = YourMethod()")
    if isinstance(method, type):
        raise UserError(f"--method {file}: its METHOD is a class; end the file with METHOD = {method.__name__}()")
    missing = [name for name in VALUES if not hasattr(method, name)]
    missing += [name for name in CALLS if not callable(getattr(method, name, None))]
    if missing:
        raise UserError(
            f"--method {file}: its METHOD lacks {', '.join(missing)}; derive it from one of switchlora.methods"
        )
    if unknown := set(method.uses) - OF_METHODS:
        raise UserError(
            f"--method {file}: its METHOD uses {', '.join(sorted(unknown))}, which are no options of methods; "
            f"these are {', '.join(sorted(OF_METHODS))}"
        )
    return cast(Method, method)
