"""Python source as the policy tests see it: which files there are, and what each says, without running it.

Every check here is a function from a tree of files to a list of violations, one line each with the file and
line. The tests apply it to this repository, where the list must be empty, and to small made-up trees, where
it must not be: a check that cannot fail proves nothing.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "switchlora"


@dataclass(frozen=True)
class Module:
    """One file of the package, parsed.

    name: dotted, below the package and without `__init__`: `training.loop`, `data`, and "" for the package
    itself.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether this is the `__init__.py` of a folder."""
        return self.path.name == "__init__.py"


def read_modules(package_folder: Path) -> list[Module]:
    """Every module under `package_folder`, the folder of the package's `__init__.py`; sorted by path."""
    modules = []
    for path in sorted(package_folder.rglob("*.py")):
        parts = path.relative_to(package_folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))
    return modules


def own_modules() -> list[Module]:
    """The modules of this repository's package; an empty package is an error, not a pass."""
    modules = read_modules(REPOSITORY / "src" / PACKAGE)
    assert modules, "src/switchlora holds no module: the policy tests would check nothing"
    return modules


def statements_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs at import: not the bodies of functions, nor `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (node for branch in child.orelse for node in ast.walk(branch))
            continue
        yield child
        yield from statements_at_import(child)


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    """Write a made-up tree, `{relative path: text}`, for a check to fail on. Returns `folder`."""
    for relative, text in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def listed(violations: list[str]) -> str:
    """The message of a failing assertion: each violation on its own line, none cut short by pytest."""
    return "\n" + "\n".join(violations)
