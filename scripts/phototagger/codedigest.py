"""Digests of code: what a rule's result depends on besides its inputs and params.

A rule's digest covers its script, every phototagger module the script imports (directly or through
another), and the data files named with it. Comments, docstrings and formatting are left out, so
that only a change of meaning makes results stale.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = "phototagger"
SCRIPTS = Path(__file__).resolve().parents[1]
# Modules without influence on what a result says: logging, counting, where things lie, how servers
# are started and checked (what shapes an answer is in a setup's digest).
NEUTRAL = {
    "allocation",
    "buckets",
    "commandline",
    "config",
    "connection",
    "endpoints",
    "errors",
    "flocks",
    "gpus",
    "job",
    "lastjob",
    "machine",
    "preflight",
    "probe",
    "processes",
    "runfolder",
    "scratch",
    "server",
    "setup_weights",
    "setups",
    "supervisor",
    "timeleft",
}
# Where statements hold others.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def rule_digest(rule: str, data: Iterable[Path] = ()) -> str:
    """Digest of `scripts/<rule>.py`, the modules it uses and its data files; 16 hex digits."""
    total = hashlib.sha256()
    modules = sorted(used_modules(SCRIPTS / f"{rule}.py"))
    for path in [SCRIPTS / f"{rule}.py", *modules]:
        total.update(f"{path.name}:{code_digest(path)}\n".encode())
    for path in data:
        total.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def used_modules(script: Path) -> set[Path]:
    """The package's modules that a script imports, and those that they import."""
    found: set[Path] = set()
    queue = [script]
    while queue:
        for module in _analyse(queue.pop())[1]:
            if module not in found:
                found.add(module)
                queue.append(module)
    return found


def code_digest(path: Path) -> str:
    """Digest of a Python file's meaning."""
    return _analyse(path)[0]


@cache
def _analyse(path: Path) -> tuple[str, tuple[Path, ...]]:
    """A file's digest and the package's modules that it imports; files are read once per run."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    statements = list(_statements(tree))
    imports = tuple(
        module
        for name in _imported_names(statements)
        if name not in NEUTRAL and (module := SCRIPTS / PACKAGE / f"{name}.py").exists()
    )
    for node in statements:
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), imports


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it; expressions, most of a tree, are left out."""
    queue: list[ast.AST] = [tree]
    for node in queue:
        yield node
        for block in _BLOCKS:
            queue += getattr(node, block, ())


def _imported_names(statements: Iterable[ast.AST]) -> Iterator[str]:
    for node in statements:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{PACKAGE}."):
                    yield alias.name.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            yield node.module.split(".")[1]
