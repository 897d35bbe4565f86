"""Settings that hide in module globals, found on the syntax tree.

A module global that some function changes is a setting that no state_dict saves and no signature shows; two
runs in one process then change each other. Constants are welcome: a table in capitals that nobody writes to.
"""

import ast
from collections.abc import Iterator

from tests.policy.source import Module

MUTABLE_CALLS = {"dict", "list", "set", "bytearray", "defaultdict", "Counter", "OrderedDict", "deque"}
MUTABLE_DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
MUTATING_METHODS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft"),
    *("remove", "setdefault", "update", "__setitem__"),
}


def global_violations(modules: list[Module]) -> list[str]:
    """`global` statements, mutable globals not named as constants, and globals changed by a function."""
    violations = []
    for module in modules:
        names = dict(_module_names(module.tree))
        for name, value in names.items():
            if _is_mutable(value) and name.strip("_") != name.strip("_").upper() and not name.startswith("__"):
                violations.append(f"{module.path}:{value.lineno}: {name} is a mutable global")
        for function in _functions(module.tree):
            violations += [f"{module.path}:{line}: {what}" for line, what in _changes(function, set(names))]
    return sorted(set(violations))


def _module_names(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and value is not None:
            yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(value, MUTABLE_DISPLAYS)


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _changes(function: ast.FunctionDef | ast.AsyncFunctionDef, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, what) for every change that `function` makes to one of the module's `names`."""
    names = names - _local_names(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            if isinstance(node.value, ast.Name) and node.value.id in names:
                yield node.lineno, f"changes the global {node.value.id}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called_on = node.func.value
            if isinstance(called_on, ast.Name) and called_on.id in names and node.func.attr in MUTATING_METHODS:
                yield node.lineno, f"changes the global {called_on.id}"


def _local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return arguments | stored
