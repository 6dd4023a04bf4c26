"""The documents say what the code does."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import strategies
from loop.config import AppConfig

ROOT = Path(__file__).parent.parent


def test_every_endpoint_is_in_the_documentation() -> None:
    """In a process of its own: the application belongs to MONAI Label's global state."""
    code = (
        "from server.app import application as a\n"
        "print(*[f'{m} {p}' for p, ms in a.openapi()['paths'].items() for m in ms], sep='\\n')"
    )
    paths = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split("\n")
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


def test_the_tables_of_strategies_are_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "cli", "strategies"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.count("\n|") > 2 * len(strategies.names())
    text = (ROOT / "docs" / "strategies.md").read_text()
    assert printed.stdout.strip() in text, "run `nextslice strategies` and put its tables into docs/strategies.md"


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_has_its_formula_on_a_page(name: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "strategies").glob("*.md"))
    assert f"`{re.sub('^(sb|power)_.*', lambda form: f'{form[1]}_<name>', name)}`" in pages


def test_the_example_strategy_of_the_contributing_guide_works(tmp_path: Path) -> None:
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
    ran = [
        subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": "."}
        )
        for command in (["-c", script], ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_middle.py"])
    ]
    assert str(tmp_path) in ran[0].stdout
    assert " middle " in ran[0].stdout
    assert "1 passed" in ran[1].stdout, ran[1].stdout + ran[1].stderr
