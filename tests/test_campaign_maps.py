"""Maps of what was chosen: which items, by whose features, and what a campaign does with and without them."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.campaign import kept, maps
from bench.campaign.gallery import embedding_maps
from bench.campaign.progress import Progress
from bench.phantom import SMALL, write_phantoms
from cli import app

TABLES = ("scores.csv", "picks.csv", "rounds.csv")


def run(phantoms: Path, out: Path, *more: str) -> str:
    ended = CliRunner().invoke(
        app,
        [
            "simulate", "--images", str(phantoms / "images"), "--labels", str(phantoms / "labels"), "--out", str(out),
            "--strategies", "random,alges_img", "--seeds", "1", "--start", "4", "--budget", "3", "--rounds", "1",
            "--conf", "epochs=1", "--conf", "steps_per_epoch=4", "--conf", "batch_size=2", *more,
        ],
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Phantoms, a campaign on them with maps, and the same without."""
    folder = tmp_path_factory.mktemp("maps")
    write_phantoms(folder / "study", patients=4, seed=1, shape=SMALL)
    run(folder / "study", folder / "with", "--maps")
    run(folder / "study", folder / "without", "--keep")
    return folder / "study", folder / "with", folder / "without"


def test_maps_change_no_result(campaigns: tuple[Path, Path, Path]) -> None:
    _, with_maps, without = campaigns
    for table in TABLES:
        assert (with_maps / table).read_text() == (without / table).read_text()
    assert not (without / "maps").exists()


@pytest.mark.parametrize("name", ["random", "alges_img"])
def test_a_map_marks_what_was_labelled_and_picked(campaigns: tuple[Path, Path, Path], name: str) -> None:
    _, folder, _ = campaigns
    rows = [line.split(",") for line in (folder / "picks.csv").read_text().splitlines()]
    at = {key: rows[0].index(key) for key in ("strategy", "round", "image", "slice")}
    with np.load(kept.map_file(folder, name, 0), allow_pickle=False) as held:
        points, state = held["points"], held["state"]
        items = list(zip(held["image"].tolist(), held["slice"].tolist(), strict=True))
    assert points.shape == (len(state), 2)
    assert np.isfinite(points).all()
    assert state.dtype == np.int8
    for number in (0, 1):
        own = {
            (row[at["image"]], int(row[at["slice"]]))
            for row in rows[1:]
            if row[at["strategy"]] == name and row[at["round"]] == str(number)
        }
        assert {item for item, kind in zip(items, state, strict=True) if kind == number + 1} == own
    assert (state == kept.POOL).sum() > 20


def test_the_report_draws_them(campaigns: tuple[Path, Path, Path]) -> None:
    figure = embedding_maps(campaigns[1], ["random", "alges_img"])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["random", "alges_img"]


def test_runs_that_were_done_before_have_no_map_and_it_is_told(campaigns: tuple[Path, Path, Path]) -> None:
    phantoms, _, without = campaigns
    assert "No map of random, alges_img: the run was done before" in run(phantoms, without, "--maps")


def test_a_run_that_was_killed_before_its_map_makes_it_then(campaigns: tuple[Path, Path, Path]) -> None:
    phantoms, with_maps, without = campaigns
    (without / "runs" / "random" / "seed0" / "done").unlink()
    assert "No map of alges_img:" in run(phantoms, without, "--maps", "--keep")
    maps_of_it = [np.load(kept.map_file(folder, "random", 0)) for folder in (with_maps, without)]
    for key in ("state", "image", "slice"):
        np.testing.assert_array_equal(*(held[key] for held in maps_of_it))
    for held in maps_of_it:
        held.close()


def test_all_marked_items_are_shown() -> None:
    state = np.zeros(500, np.int8)
    state[::50], state[7] = kept.LABELED, kept.PICKED
    known = np.ones(500, bool)
    known[3] = False
    rows = maps.shown(state, known, np.random.default_rng(0), most=100)
    assert len(rows) == 100
    assert set(np.flatnonzero(state)) <= set(rows.tolist())
    np.testing.assert_array_equal(rows, maps.shown(state, known, np.random.default_rng(0), most=100))
    assert 3 not in maps.shown(state, known, np.random.default_rng(0), most=500)
    assert len(maps.shown(state, known, np.random.default_rng(0), most=5)) == 11


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_clusters_stay_together_on_a_map(scale: float) -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], 40)
    features = (scale * (5 * np.eye(3)[kind] @ rng.normal(size=(3, 80)) + rng.normal(size=(120, 80)))).astype(
        np.float32
    )
    points = maps.embed(features, seed=1)
    assert points is not None
    np.testing.assert_array_equal(points, maps.embed(features, seed=1))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(120)
    assert (kind[distances.argmin(1)] == kind).mean() > 0.95


def test_there_is_no_map_of_nothing() -> None:
    assert maps.embed(np.zeros((3, 5), np.float32), 0) is None
    assert maps.embed(np.ones((30, 5), np.float32), 0) is None
    few = maps.embed(np.arange(8, dtype=np.float32).reshape(4, 2), 0)
    assert few is not None
    assert np.isfinite(few).all()


def test_the_time_that_is_left_is_told_now_and_then() -> None:
    told, now = list[str](), iter([0.0, 30.0, 300.0, 4000.0])
    progress = Progress(21, 1, told.append, lambda: next(now))
    for done in (1, 2, 3, 6, 11, 21):
        progress.update(done)
    assert told == [
        "2 of 21 rounds are done; about 10 minutes left.",
        "6 of 21 rounds are done; about 15 minutes left.",
        "11 of 21 rounds are done; about 67 minutes left.",
    ]
