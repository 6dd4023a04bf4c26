"""The documents say what the code does."""

import re
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
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n# strategies/middle.py\n(.*?)```", text, re.DOTALL)
    assert code
    (tmp_path / "middle.py").write_text(code.group(1))
    script = (
        "import numpy as np, middle\nfrom loop.pool import ItemTable, Pool\n"
        "v = np.repeat([0, 1], 9); p = np.tile(np.arange(9), 2); n = np.zeros(18, bool)\n"
        "s = middle.Middle().ask(Pool(ItemTable(['a', 'b'], v, p), n, n, v, v, p), {}, 2, seed=0, round_no=1)\n"
        "assert sorted(s.rows.tolist()) == [4, 13], s.rows"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)})
