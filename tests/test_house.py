"""The house rules: who may import whom, and what every strategy and model name must be."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("strategies", "models", "infers", "trainers", "loop", "datastore", "dicom", "server", "bench", "apps")
MONAILABEL_ALLOWED = {
    "infers/task.py", "trainers/task.py", "loop/shell.py", "loop/assembly.py", "datastore/served.py",
}  # fmt: skip

# Module (or package) -> what it must not import, directly or through others of ours.
FORBIDDEN = {
    "loop.pool": {"strategies", "models", "infers", "trainers", "datastore", "server", "bench"},
    "loop.views": {"strategies", "models", "infers", "trainers", "datastore", "server", "bench"},
    "loop.signals": {"strategies", "models", "infers", "trainers", "datastore", "server", "bench"},
    "loop.store": {"strategies", "models", "infers", "trainers", "datastore", "server", "bench"},
    "strategies": {
        "models",
        "infers",
        "trainers",
        "datastore",
        "server",
        "bench",
        "loop.store",
        "loop.rounds",
        "loop.shell",
    },
    "loop.rounds": {"models", "infers", "trainers", "datastore", "server", "bench", "loop.shell", "loop.assembly"},
    "models": {"infers", "trainers", "datastore", "server", "bench", "strategies", "loop.rounds", "loop.store"},
    "infers.engine": {"trainers", "server", "bench", "strategies", "loop.rounds", "loop.store"},
    "trainers.engine": {"infers", "server", "bench", "strategies", "loop.rounds", "loop.store"},
    "loop.shell": {"loop.assembly", "server", "bench"},
    "loop.assembly": {"server", "bench"},
    "server": {"bench", "apps"},
}


@functools.cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of all our code."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@functools.cache
def imports(file: Path) -> set[str]:
    """Every module a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def reached(name: str, known: dict[str, Path]) -> set[str]:
    """Our modules that importing `name` brings in."""
    todo, seen = [name], set[str]()
    while todo:
        current = todo.pop()
        for target in imports(known[current]) & known.keys():
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_imports_go_one_way(name: str) -> None:
    known = modules()
    members = [module for module in known if module == name or module.startswith(f"{name}.")]
    assert members
    for member in members:
        for target in reached(member, known):
            broken = [bad for bad in FORBIDDEN[name] if target == bad or target.startswith(f"{bad}.")]
            assert not broken, f"{member} reaches {target}"


def test_monailabel_stays_in_its_rooms() -> None:
    users = {
        file.relative_to(ROOT).as_posix()
        for file in modules().values()
        if any(name == "monailabel" or name.startswith("monailabel.") for name in imports(file))
    }
    outside = {
        user for user in users if not user.startswith(("server/", "apps/", "bench/stock_app/"))
    } - MONAILABEL_ALLOWED
    assert not outside


def test_a_campaign_needs_no_monailabel() -> None:
    known = modules()
    users = {name for name, file in known.items() if any(target.startswith("monailabel") for target in imports(file))}
    for name in ("loop.worker", "loop.conductor", "bench.robot", "bench.phantom", "bench.redundancy"):
        assert not reached(name, known) & users


def test_torchvision_is_nowhere() -> None:
    users = [
        name
        for name, file in modules().items()
        if any(target.split(".")[0] == "torchvision" for target in imports(file))
    ]
    assert not users
