"""The functional core does no I/O, reads no clock and no environment, and imports nothing from the launcher.

What may be imported is listed, so that a new module must be judged before it gets in.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import backends

FILES = sorted(Path(backends.__file__).parent.rglob("*.py"))

PURE_MODULES = frozenset(
    {
        "__future__",
        "backends",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "re",
        "shlex",
        "typing",
    }
)
PURE_PATH = frozenset({"basename", "commonpath", "dirname", "isabs", "join", "normpath", "split", "splitext"})
# Some of those that must not get in; whatever is not listed above must not either.
FORBIDDEN_MODULES = (
    "sys",
    "subprocess",
    "time",
    "datetime",
    "pathlib",
    "asyncio",
    "threading",
    "multiprocessing",
    "random",
    "secrets",
    "uuid",
    "logging",
    "shutil",
    "tempfile",
    "signal",
    "platform",
    "importlib",
    "concurrent.futures",
    "urllib.request",
    "aiohttp",
    "psutil",
    "click",
    "dns.resolver",
    "tenacity",
    "pynvml",
    "ray",
    "torch",
    "vllm",
)
FORBIDDEN_CALLS = frozenset(
    {"open", "print", "input", "breakpoint", "exec", "eval", "compile", "__import__", "globals", "setattr"}
)


def offences(source: str) -> list[str]:
    """Everything in this source that a pure module must not do, one line each."""
    found: list[tuple[int, str]] = []

    def report(node: ast.AST, what: str) -> None:
        found.append((getattr(node, "lineno", 0), what))

    tree = ast.parse(source)
    paths: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            paths.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if not _pure_module(alias.name) or (alias.name == "os.path" and alias.asname):
                    report(node, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if node.level == 1:
                continue
            for alias in node.names:
                pure = alias.name in PURE_PATH if module == "os.path" else _pure_module(module)
                if not pure:
                    report(node, f"from {module} import {alias.name}")
        elif isinstance(node, ast.Attribute) and _dotted(node.value) == "os" and node.attr != "path":
            report(node, f"os.{node.attr}")
        elif isinstance(node, ast.Attribute) and _dotted(node.value) == "os.path" and node.attr not in PURE_PATH:
            report(node, f"os.path.{node.attr}")
        elif isinstance(node, ast.Attribute) and _dotted(node) == "os.path" and node not in paths:
            report(node, "os.path as a value")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            report(node, f"{node.func.id}()")
    return [f"line {line}: {what}" for line, what in sorted(found)]


def _pure_module(name: str) -> bool:
    return name in ("os.path", "urllib.parse") or name.partition(".")[0] in PURE_MODULES


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def test_the_files_of_the_core_are_found() -> None:
    assert {"group.py", "argv.py", "planner.py", "vllm.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_module_of_the_core_is_pure(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import launcher", "import launcher"),
        ("import launcher.gates", "import launcher.gates"),
        ("from launcher.cli import main", "from launcher.cli import main"),
        ("from .. import launcher", "from .. import launcher"),
        ("import os", "import os"),
        ("from os import environ", "from os import environ"),
        ("from os import path", "from os import path"),
        ("import os.path\nos.environ['HOME']", "os.environ"),
        ("import os.path\nos.getpid()", "os.getpid"),
        ("import os.path\nos.path.exists('/dev/shm')", "os.path.exists"),
        ("import os.path as p\np.exists('/')", "import os.path"),
        ("import os.path\np = os.path\np.exists('/')", "os.path as a value"),
        ("from os.path import exists", "from os.path import exists"),
        ("def f():\n    import socket", "import socket"),
        ("if True:\n    from subprocess import run", "from subprocess import run"),
        ("open('/etc/hosts')", "open()"),
        ("x = [print(1)]", "print()"),
        ("input()", "input()"),
        ("__import__('os')", "__import__()"),
        *((f"import {name}", f"import {name}") for name in FORBIDDEN_MODULES),
    ],
)
def test_the_rule_catches_what_it_forbids(source: str, what: str) -> None:
    assert [offence.partition(": ")[2] for offence in offences(source)] == [what]


@pytest.mark.parametrize(
    "source",
    [
        "import os.path\nos.path.basename('/a/b')\nos.path.isabs('/a')",
        "from os.path import basename",
        "from collections.abc import Sequence",
        "from backends.plan import Node\nfrom backends import argv",
        "import json\njson.dumps({})",
        "opened = 1\nself.print_ = opened",
    ],
)
def test_the_rule_lets_pure_code_pass(source: str) -> None:
    assert offences(source) == []
