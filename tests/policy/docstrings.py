"""Which public names of the package say what they are.

Asked for: modules (which teach their idea), functions and classes at the top level, and the public methods of
classes without a base. A class with a base mostly overrides methods that its base documents, so it is left
alone.
"""

import ast
from collections.abc import Iterator

from tests.policy.source import Module

# Bases that document no method of the class.
TRANSPARENT_BASES = ("Protocol", "ABC", "NamedTuple", "TypedDict", "Enum", "StrEnum", "Generic")


def undocumented(modules: list[Module]) -> list[str]:
    """One line for every module and public name without a docstring."""
    violations = []
    for module in modules:
        if not ast.get_docstring(module.tree):
            violations.append(f"{module.path}:1: the module says nothing of itself")
        for name, node in _public_definitions(module.tree):
            if not ast.get_docstring(node):
                violations.append(f"{module.path}:{node.lineno}: {name} has no docstring")
    return violations


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in _definitions(tree.body):
        yield node.name, node
        if isinstance(node, ast.ClassDef) and not _has_telling_base(node):
            for method in _definitions(node.body):
                yield f"{node.name}.{method.name}", method


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
        if not node.name.startswith("_") and not decorators & {"overload", "override", "setter"}:
            yield node


def _has_telling_base(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    return bool(bases - set(TRANSPARENT_BASES))
