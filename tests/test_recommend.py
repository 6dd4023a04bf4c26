"""`nextslice recommend`: on phantoms that were annotated through the datastore, whole or in part."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.campaign.advice import conclusion
from bench.campaign.annotated import read_annotated
from bench.campaign.tables import Tables, read_tables
from bench.campaign.verdict import Recommendation
from bench.phantom import SMALL, write_phantoms
from cli import app
from datastore.folder import FolderDatastore
from loop.config import AppConfig
from loop.errors import BadInput
from loop.rounds import Loop
from loop.store import Store

ROOT = Path(__file__).parent.parent
PATIENTS, WHOLE, PARTLY = 9, 7, 1
FAST = ["epochs=1", "steps_per_epoch=2", "batch_size=2"]


class Annotator:
    """Phantoms in sub-folders of a studies folder, and the datastore that takes their truth in."""

    def __init__(self, folder: Path) -> None:
        self.ids = write_phantoms(folder, patients=PATIENTS, seed=3, shape=SMALL)
        self.studies, self.truth = folder / "images", folder / "labels"
        (self.studies / "clinic").mkdir()
        (self.studies / f"{self.ids[0]}.nii.gz").rename(self.studies / "clinic" / f"{self.ids[0]}.nii.gz")
        self.config = AppConfig.from_conf({}, str(self.studies))
        self.state = self.studies / ".nextslice"
        self.state.mkdir()
        self.store = Store(f"sqlite:///{self.state / 'store.sqlite'}")
        self.datastore = FolderDatastore(self.studies, self.state, Loop(self.store, self.config))
        self.datastore.refresh()

    def annotate(self, number: int, slices: list[int] | None = None) -> None:
        name = self.ids[number]
        image_id = name if number else f"clinic/{name}"
        self.datastore.submit(image_id, self.truth / f"{name}.nii.gz", slices=slices)
        self.datastore.settle()


@pytest.fixture
def annotator(tmp_path: Path) -> Iterator[Annotator]:
    found = Annotator(tmp_path / "study")
    yield found
    found.store.close()


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and what it is; without the results."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(folder / ".nextslice" / "recommend")
    }


def asked(studies: Path, *more: str) -> list[str]:
    conf = [part for setting in FAST for part in ("--conf", setting)]
    return ["recommend", "--studies", str(studies), *conf, *more]


@pytest.fixture(scope="module")
def recommended(tmp_path_factory: pytest.TempPathFactory, python: Callable[..., Any]) -> tuple[Path, str]:
    """The studies folder, and what was said; where MONAI Label cannot be imported."""
    annotator = Annotator(tmp_path_factory.mktemp("recommend") / "study")
    for number in range(WHOLE):
        annotator.annotate(number)
    annotator.annotate(WHOLE, [0, 1, 2])
    annotator.store.close()
    before = contents(annotator.studies)
    blocked = annotator.studies.parent / "blocked"
    blocked.mkdir()
    (blocked / "monailabel.py").write_text("raise ImportError('not on this machine')\n")
    # First on the path, and of its children's.
    code = f"import sys; sys.path.insert(0, {str(blocked)!r}); import cli; cli.main()"
    arguments = asked(annotator.studies, "--strategies", "random,core_set", "--seeds", "2", "--rounds", "1")
    ended = python("-c", code, *arguments, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert contents(annotator.studies) == before, "the folder and its store are only read"
    return annotator.studies, ended.stdout


def test_it_ends_with_a_strategy_and_where_the_evidence_is(recommended: tuple[Path, str]) -> None:
    studies, said = recommended
    out = studies / ".nextslice" / "recommend"
    *_, page, last = said.strip().splitlines()
    assert "Left out of the annotated volumes: 1 because only a part of their slices is annotated" in said
    assert (
        f"{WHOLE} volumes of {WHOLE} patients are annotated to the last slice: 5 to choose from, 2 to measure on"
        in said
    )
    assert "of 8 rounds are done; about" in said
    assert "| core_set" in said
    assert page.endswith(str(out / "report.html"))
    assert "core_set" in (out / "report.html").read_text()
    assert last.startswith(("Use core_set", "Use random", "Nothing here can be told to be better than random"))


def test_only_whole_volumes_are_used(recommended: tuple[Path, str]) -> None:
    out = recommended[0] / ".nextslice" / "recommend"
    facts, tables = json.loads((out / "campaign.json").read_text()), read_tables(out)
    assert (facts["pool_volumes"], facts["test_volumes"]) == (5, 2)
    used = {*tables.scores["volume"], *json.loads((out / "annotated.json").read_text())}
    assert len(used) == WHOLE
    assert any(name.startswith("clinic/") for name in used)
    assert (out / "labels" / "clinic").is_dir()
    candidates = max(int(row["candidates"]) for row in csv.DictReader((out / "rounds.csv").read_text().splitlines()))
    assert facts["start"] == facts["budget"] == candidates // 20 > 2


def test_the_same_command_says_the_same(recommended: tuple[Path, str]) -> None:
    studies, said = recommended
    again = CliRunner().invoke(app, asked(studies, "--strategies", "random,core_set", "--seeds", "2", "--rounds", "1"))
    assert again.exit_code == 0, again.output
    assert again.output.strip().splitlines()[-1] == said.strip().splitlines()[-1]


def test_a_store_that_is_in_use_is_read_as_it_is(annotator: Annotator, tmp_path: Path) -> None:
    annotator.annotate(0)
    assert (annotator.state / "store.sqlite-wal").is_file()
    annotator.annotate(1)
    annotator.annotate(2, [0])
    (tmp_path / "scratch").mkdir()
    found = read_annotated(annotator.studies, annotator.config, tmp_path / "scratch")
    assert set(found.whole) == {f"clinic/{annotator.ids[0]}", annotator.ids[1]}
    assert found.partial[annotator.ids[2]][0] == 1
    annotator.annotate(2)  # nobody stands in its way


def test_too_few_are_told(annotator: Annotator) -> None:
    for number in range(3):
        annotator.annotate(number)
    annotator.annotate(3, [0])
    ended = CliRunner().invoke(app, asked(annotator.studies))
    said = " ".join(ended.output.split())
    assert ended.exit_code == 2
    assert "at least 6 patients with every slice annotated" in said
    assert "has 3 of 3, and 1 with a part annotated. Annotate more of them to the end" in said
    assert not (annotator.state / "recommend").exists()


def test_a_mask_or_an_image_that_is_gone_is_left_out(annotator: Annotator, tmp_path: Path) -> None:
    for number in range(3):
        annotator.annotate(number)
    annotator.datastore.label_path(annotator.ids[1], "final").unlink()
    (annotator.studies / f"{annotator.ids[2]}.nii.gz").unlink()
    (tmp_path / "scratch").mkdir()
    found = read_annotated(annotator.studies, annotator.config, tmp_path / "scratch")
    assert len(found.whole) == 1
    assert "1 because the composite mask is not there; 1 because the image is gone" in found.left_out()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--budget", "60", "--rounds", "5"], "Ask for fewer --rounds or a smaller --budget"),
        (["--conf", "unit=volume", "--rounds", "9"], "volumes can be chosen from"),
        (["--conf", "labels=a,b"], "labels must name the 4 classes that were annotated, got 2"),
        (["--conf", "supervision=scribble"], "measures on masks"),
        (["--conf", "state=/nowhere"], "must have records of annotations"),
        (["--seeds", "x"], "seeds must be"),
        (["--out", "{studies}/results"], "--out must not be among the images"),
    ],
)
def test_what_is_asked_wrongly_is_told(recommended: tuple[Path, str], more: list[str], told: str) -> None:
    studies = recommended[0]
    ended = CliRunner().invoke(app, asked(studies, *(part.format(studies=studies) for part in more)))
    assert ended.exit_code == 2, ended.output
    assert told in " ".join(ended.output.split())


def test_other_annotations_need_another_folder(recommended: tuple[Path, str]) -> None:
    kept = recommended[0] / ".nextslice" / "recommend" / "annotated.json"
    before = kept.read_text()
    kept.write_text("{}")
    ended = CliRunner().invoke(app, asked(recommended[0]))
    kept.write_text(before)
    assert ended.exit_code == 2
    assert "from other annotations (0 volumes then, 7 now)" in " ".join(ended.output.split())


def test_a_folder_without_records_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nextslice serve"):
        read_annotated(tmp_path, AppConfig(), tmp_path)
    (tmp_path / ".nextslice").mkdir()
    (tmp_path / ".nextslice" / "store.sqlite").write_text("no database at all, and long enough to be looked at")
    with pytest.raises(BadInput, match="not a database"):
        read_annotated(tmp_path, AppConfig(), tmp_path)


def test_the_last_line_names_the_strategy_or_says_that_nothing_is_better(recommended: tuple[Path, str]) -> None:
    tables: Tables = read_tables(recommended[0] / ".nextslice" / "recommend")
    better = conclusion(tables, Recommendation("core_set", "It is better.", ()))
    assert better == "Use core_set: --conf strategy core_set. It is better."
    none = conclusion(tables, Recommendation("random", "None is better.", ()))
    assert none == "Nothing here can be told to be better than random, which is the safe choice. None is better."
