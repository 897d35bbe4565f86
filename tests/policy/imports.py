"""The direction of imports: a file imports only from files above it in ORDER.

Data flows one way through this package, from the configuration to the report. A file that reaches down the
order (a layer that knows the optimizer, an optimizer that knows the loop) makes both halves untestable on
their own, so the order is checked on the syntax tree, imports inside functions included.
"""

import ast
from collections.abc import Iterable

from tests.policy.source import PACKAGE, Module, statements_at_import

# From the top (knows nobody) to the bottom. `x.*` is a folder: its files may import each other, but not in a
# circle. The longest match wins, so `training.loop` stands apart from `training.*`. A new file at the top
# level must be given its place here.
ORDER = (
    "errors",
    "config",
    "transfers",
    "closures",
    "draws",
    "initialisation",
    "precision",
    "shards",
    "input_chain",
    "token_blocks",
    "once",
    "effective_linear",
    "layer",
    "conv1d",
    "conversion",
    "candidates",
    "switching",
    "stats",
    "rules",
    "muon",
    "flops",
    "moving",
    "weight_update",
    "polar",
    "moving_layers",
    "kernels.*",
    "distributed.*",
    "ordinary",
    "exchange",
    "layer_group",
    "state",
    "spent_gradient",
    "fused_backward",
    "optimizer_checks",
    "parameter_groups",
    "optimizer",
    "memory_report",
    "golden.*",
    "baselines.*",
    "methods.*",
    "data.*",
    "options.*",
    "machine.*",
    "training.*",
    "report.*",
    "training.export",
    "training.loop",
    "trained.*",
    "spectrum.*",
    "evaluation.*",
    "generation.*",
    "finetuning.*",
    "planning.*",
    "bench.*",
    "compare.*",
    "cli",
    "__main__",
    "",  # switchlora/__init__.py, which gathers the public names
)

# These are useful alone, so they know less than their place would allow: the folder itself and errors.
ONLY_ERRORS = ("data.*", "report.*")

# A heavy package may be imported at import in this folder, which counts as heavy itself: outside it, its files too are
# imported only inside functions.
HEAVY_FOLDERS = {"triton": "kernels.jit"}

# Slow to import (up to seconds) or optional: only inside the functions that need them.
HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "galore_torch",
    "matplotlib",
    "peft",
    "plotly",
    "pyarrow",
    "pytorch_optimizer",
    "scipy",
    "tensorboard",
    "tokenizers",
    "transformers",
    "triton",
    "wandb",
    "zstandard",
)


def place_of(name: str, order: Iterable[str] = ORDER) -> str | None:
    """The entry of the order that a module belongs to, or None when it has none."""
    if name in order:
        return name
    folder = name.split(".")[0] + ".*"
    return folder if folder in order else None


def imported_modules(module: Module, known: set[str]) -> list[tuple[int, str]]:
    """(line, name below the package) of every import of the package itself that `module` contains."""
    imports = [node for node in ast.walk(module.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [(node.lineno, name) for node in imports for name in _own_modules_of(node, module, known)]


def _own_modules_of(node: ast.Import | ast.ImportFrom, module: Module, known: set[str]) -> list[str]:
    """Names below the package of what one statement imports of the package."""
    if isinstance(node, ast.Import):
        dotted = [alias.name for alias in node.names]
    else:
        base = _absolute(module, node)
        # `from switchlora.data import blocks` may name a module or something inside `data`.
        dotted = [_deepest(base, alias.name, known) for alias in node.names]
    return [name[len(PACKAGE) + 1 :] for name in dotted if name == PACKAGE or name.startswith(PACKAGE + ".")]


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *filter(None, module.name.split("."))]
    up = node.level - 1 if module.is_package else node.level
    return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


def _deepest(base: str, name: str, known: set[str]) -> str:
    return f"{base}.{name}" if f"{base}.{name}"[len(PACKAGE) + 1 :] in known else base


def direction_violations(modules: list[Module]) -> list[str]:
    """Imports against the order, modules that have no place in it, and circles inside a folder."""
    known = {module.name for module in modules}
    violations = []
    graph: dict[str, set[str]] = {}
    for module in modules:
        place = place_of(module.name)
        if place is None:
            violations.append(f"{module.path}: give it its place in ORDER, tests/policy/imports.py")
            continue
        imports = imported_modules(module, known)
        graph[module.name] = {name for _, name in imports}
        for line, name in imports:
            complaint = _complaint(place, name)
            if complaint:
                violations.append(f"{module.path}:{line}: imports {PACKAGE}.{name}, {complaint}")
    return violations + _circles(graph)


def _complaint(place: str, imported: str) -> str | None:
    target = place_of(imported)
    if target is None:
        return "which has no place in the order"
    if target == place:
        return None if place.endswith(".*") else "which is itself"
    if ORDER.index(target) > ORDER.index(place):
        return f"which stands below it ({place} < {target})"
    if place in ONLY_ERRORS and target != "errors":
        return f"but {place} may import only errors and its own folder"
    return None


def _circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles: a folder's `__init__` gathers its files, so none of them may import it back."""
    remaining = {name: targets & graph.keys() for name, targets in graph.items()}
    while True:
        done = {name for name, targets in remaining.items() if not targets}
        if not done:
            break
        remaining = {name: targets - done for name, targets in remaining.items() if name not in done}
    return [f"{name}: imports in a circle, with {sorted(targets)}" for name, targets in sorted(remaining.items())]


def heavy_violations(modules: list[Module]) -> list[str]:
    """Imports of slow or optional packages that happen as soon as the module is imported."""
    known = {module.name for module in modules}
    violations = []
    for module in modules:
        homes = {package for package, folder in HEAVY_FOLDERS.items() if _inside(module.name, folder)}
        for node in statements_at_import(module.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            own = _own_modules_of(node, module, known)
            heavy = [name for name in _third_parties(node) if name in HEAVY and name not in homes]
            heavy += [
                f"{PACKAGE}.{name}"
                for package, folder in HEAVY_FOLDERS.items()
                for name in own
                if _inside(name, folder) and package not in homes
            ]
            violations += [
                f"{module.path}:{node.lineno}: imports {name} at import; move it into the function" for name in heavy
            ]
    return violations


def _inside(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


def _third_parties(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [(node.module or "").split(".")[0]]
    return []
