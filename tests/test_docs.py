"""The documents say what the code does."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import strategies
from loop.config import AppConfig

ROOT = Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_every_endpoint_is_in_the_documentation(python: Run) -> None:
    """In a process of its own: the application belongs to MONAI Label's global state."""
    code = (
        "from server.app import application as a\n"
        "print(*[f'{m} {p}' for p, ms in a.openapi()['paths'].items() for m in ms], sep='\\n')"
    )
    ended = python("-c", code, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    paths = ended.stdout.split("\n")
    assert "get /info/" in paths
    text = (ROOT / "docs" / "rest.md").read_text()
    missing = [
        line
        for line in paths
        if line.startswith(("get /", "post /", "put /", "delete /")) and line.split()[1] not in text
    ]
    assert not missing


@pytest.mark.parametrize("setting", [spec.name for spec in fields(AppConfig)])
def test_every_setting_is_in_the_documentation(setting: str) -> None:
    row = re.search(rf"^\| `{setting}` \|.*\|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert row
    assert (
        next(spec for spec in fields(AppConfig) if spec.name == setting).metadata["help"].replace("|", "\\|")
        in row.group()
    )


def test_the_tables_of_strategies_are_what_the_command_prints(nextslice: Run) -> None:
    printed = nextslice("strategies", cwd=ROOT)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("\n|") > 2 * len(strategies.names())
    text = (ROOT / "docs" / "strategies.md").read_text()
    assert printed.stdout.strip() in text, "run `nextslice strategies` and put its tables into docs/strategies.md"


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_has_its_formula_on_a_page(name: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "strategies").glob("*.md"))
    assert f"`{re.sub('^(sb|power)_.*', lambda form: f'{form[1]}_<name>', name)}`" in pages


def test_the_example_strategy_of_the_contributing_guide_works(tmp_path: Path, python: Run) -> None:
    """Its file, its test and its row, in a copy of the packages that they touch."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for package in ("strategies", "loop"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, code in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
    registered = re.search(r"`(register\(Middle\.name, Middle\))`", text)
    assert registered
    with open(tmp_path / "strategies" / "__init__.py", "a") as init:
        init.write(f"from strategies.middle import Middle\n{registered[1]}\n")
    script = (
        "import strategies; print(strategies.__file__, *strategies.names()); strategies.get('middle', {'offset': 2})"
    )
    test = "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/test_middle.py']))"
    ran = [python("-c", code, cwd=tmp_path) for code in (script, test)]
    assert str(tmp_path) in ran[0].stdout
    assert " middle " in ran[0].stdout
    assert ran[1].returncode == 0, ran[1].stdout + ran[1].stderr
    assert "1 passed" in ran[1].stdout, ran[1].stdout + ran[1].stderr
