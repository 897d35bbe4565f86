"""Which public names of the package say what they are.

Asked for: modules (which teach their idea), functions and classes at the top level, and the public methods of
classes without a base. A class with a base mostly overrides methods that its base documents, so it is left
alone; so is a method that some Protocol of the package documents
under the same name, and a property that the docstring of its class describes (`name: ...`).
"""

import ast
from collections.abc import Iterator

from tests.policy.source import Module

# Bases that document no method of the class.
TRANSPARENT_BASES = ("Protocol", "ABC", "NamedTuple", "TypedDict", "Enum", "StrEnum", "Generic")


def undocumented(modules: list[Module]) -> list[str]:
    """One line for every module and public name without a docstring."""
    promised = {name for module in modules for name in _protocol_methods(module.tree)}
    violations = []
    for module in modules:
        if not ast.get_docstring(module.tree):
            violations.append(f"{module.path}:1: the module says nothing of itself")
        for name, node in _public_definitions(module.tree):
            _, is_method, last = name.rpartition(".")
            if not ast.get_docstring(node) and not (is_method and last in promised):
                violations.append(f"{module.path}:{node.lineno}: {name} has no docstring")
    return violations


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in _definitions(tree.body):
        yield node.name, node
        if isinstance(node, ast.ClassDef) and not _has_telling_base(node):
            described = ast.get_docstring(node) or ""
            for method in _definitions(node.body):
                if f"{method.name}:" not in described:
                    yield f"{node.name}.{method.name}", method


def _protocol_methods(tree: ast.Module) -> Iterator[str]:
    for node in _definitions(tree.body):
        if isinstance(node, ast.ClassDef) and "Protocol" in _base_names(node):
            yield from (method.name for method in _definitions(node.body) if ast.get_docstring(method))


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
        if not node.name.startswith("_") and not decorators & {"overload", "override", "setter"}:
            yield node


def _has_telling_base(node: ast.ClassDef) -> bool:
    return bool(_base_names(node) - set(TRANSPARENT_BASES))


def _base_names(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
