"""Campaigns: the whole of it on phantoms, stopped and started again, and whatever it is asked wrongly."""

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.campaign.protocol import PRESETS, Protocol, seeds_of
from bench.campaign.run import Campaign
from bench.campaign.study import Study
from bench.phantom import SMALL, write_phantoms
from cli import app
from datastore.volume_io import read_volume
from loop.config import AppConfig
from loop.errors import BadInput

ROOT = Path(__file__).parent.parent
FAST = ["epochs=1", "steps_per_epoch=4", "batch_size=2"]
TABLES = ("scores.csv", "picks.csv", "rounds.csv")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaign")
    write_phantoms(folder, patients=6, seed=1, shape=SMALL)
    return folder


def arguments(phantoms: Path, out: Path, strategies: str, *more: str) -> list[str]:
    """Of `nextslice simulate`: a start of 4 slices and two rounds of 3."""
    conf = [part for setting in FAST for part in ("--conf", setting)]
    return [
        "simulate", "--images", str(phantoms / "images"), "--labels", str(phantoms / "labels"), "--out", str(out),
        "--strategies", strategies, "--seeds", "1", "--start", "4", "--budget", "3", "--rounds", "2", *conf, *more,
    ]  # fmt: skip


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def campaign(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies and the upper bound, run to the end."""
    out = tmp_path_factory.mktemp("out") / "first"
    ended = CliRunner().invoke(app, arguments(phantoms, out, "max_entropy,core_set,all"))
    assert ended.exit_code == 0, ended.output
    assert "training" in ended.output
    return out


def test_every_round_is_there_with_its_scores(campaign: Path) -> None:
    there = {
        (row["strategy"], row["round"], row["labeled"], row["selected_by"]) for row in rows(campaign / "rounds.csv")
    }
    pool = max(int(row["candidates"]) for row in rows(campaign / "rounds.csv"))
    assert there == {
        ("all", "0", str(pool), "random"),
        *((name, "0", "4", "random") for name in ("max_entropy", "core_set")),
        *((name, str(r), str(4 + 3 * r), name) for name in ("max_entropy", "core_set") for r in (1, 2)),
    }
    facts = json.loads((campaign / "campaign.json").read_text())
    scores = rows(campaign / "scores.csv")
    assert len(scores) == 7 * facts["test_volumes"] * len(facts["labels"])
    assert all(0 <= float(row["dice_3d"]) <= 1 for row in scores if row["dice_3d"])
    assert all(row["dice_3d"] for row in scores if row["label"] == "organ")
    assert {float(row["train_s"]) > 0 for row in rows(campaign / "timings.csv")} == {True}


def test_all_start_alike_and_are_measured_on_others(campaign: Path) -> None:
    picks = [row for row in rows(campaign / "picks.csv") if row["strategy"] != "all"]
    starts = {
        name: [(row["image"], row["slice"]) for row in picks if row["strategy"] == name and row["round"] == "0"]
        for name in ("max_entropy", "core_set")
    }
    assert starts["max_entropy"] == starts["core_set"]
    scores = rows(campaign / "scores.csv")
    first = [[row["dice_3d"] for row in scores if (row["strategy"], row["round"]) == (name, "0")] for name in starts]
    assert first[0] == first[1]
    assert not {row["image"] for row in picks} & {row["volume"] for row in scores}
    for name in starts:
        mine = [(row["image"], row["slice"]) for row in picks if row["strategy"] == name]
        assert len(set(mine)) == len(mine) == 10


def test_what_was_picked_is_counted(campaign: Path, phantoms: Path) -> None:
    row = rows(campaign / "picks.csv")[-1]
    mask = read_volume(phantoms / "labels" / f"{row['image']}.nii.gz").array
    there = np.bincount(mask[:, :, int(row["slice"])].astype(int).ravel(), minlength=5)
    assert [int(row[key]) for key in row if key.startswith("voxels_")] == there.tolist()


def test_a_campaign_that_is_killed_goes_on_to_the_same_tables(
    campaign: Path, phantoms: Path, tmp_path: Path, warm_process: Any
) -> None:
    command = [sys.executable, "-m", "cli", *arguments(phantoms, tmp_path / "out", "max_entropy,core_set,all")]
    for wanted in (1, 4):  # killed twice: in the first run, and in another
        started = warm_process.start(command, tmp_path / "log", ROOT, os.environ)
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("out/runs/*/seed0/round*.json"))) < wanted and started.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/seed0/round*.json")}
    ended = CliRunner().invoke(app, command[3:])
    assert ended.exit_code == 0, ended.output
    assert len(before) < 7
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing runs twice"
    for table in TABLES:
        assert (tmp_path / "out" / table).read_text() == (campaign / table).read_text(), table


def test_the_upper_bound_has_the_steps_of_all_rounds(phantoms: Path, tmp_path: Path) -> None:
    study = Study.of(phantoms / "images", phantoms / "labels", AppConfig())
    for protocol, wanted in (("scratch", 5), ("finetune", 15)):
        there = Campaign(tmp_path, study, Protocol(budgets=(3, 3), protocol=protocol), {"epochs": "5"})
        assert there.config("random", 0, "cpu").epochs == 5
        assert there.config("all", 0, "cpu").epochs == wanted


def test_other_settings_need_another_folder(campaign: Path, phantoms: Path) -> None:
    ended = CliRunner().invoke(app, arguments(phantoms, campaign, "max_entropy", "--conf", "learning_rate=0.02"))
    assert ended.exit_code == 2
    assert "another campaign" in ended.output
    assert "Choose another --out" in " ".join(ended.output.split())


def test_the_data_may_have_moved(campaign: Path, phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "moved")
    before = (campaign / "scores.csv").read_text()
    ended = CliRunner().invoke(app, arguments(tmp_path / "moved", campaign, "max_entropy"))
    assert ended.exit_code == 0, ended.output
    assert (campaign / "scores.csv").read_text() == before
    fewer = tmp_path / "fewer"
    shutil.copytree(phantoms, fewer)
    next((fewer / "images").glob("*.nii.gz")).unlink()
    assert CliRunner().invoke(app, arguments(fewer, campaign, "max_entropy")).exit_code == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--strategies", "guess"], "no strategy 'guess'"),
        (["--preset", "mine"], "no preset 'mine'"),
        (["--seeds", "x"], "seeds must be"),
        (["--scale", "2"], "scale must be"),
        (["--protocol", "sideways"], "scratch, finetune"),
        (["--start", "5000"], "but the pool has"),
        (["--conf", "epoch=1"], "epochs"),
    ],
)
def test_what_is_asked_wrongly_is_told(phantoms: Path, tmp_path: Path, more: Sequence[str], told: str) -> None:
    ended = CliRunner().invoke(app, [*arguments(phantoms, tmp_path / "out", "max_entropy"), *more])
    assert ended.exit_code != 0
    assert told in " ".join(ended.output.split())


def test_an_image_without_truth_is_told(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="6 of 6 images have no file"):
        Study.of(phantoms / "images", tmp_path, AppConfig(labels=("organ",)))


def test_patients_are_never_on_both_sides(phantoms: Path) -> None:
    config = AppConfig(labels=("organ",), patient_pattern=r"patient00(\d)")
    study = Study.of(phantoms / "images", phantoms / "labels", config, test_share=0.34)
    smaller = Study.of(phantoms / "images", phantoms / "labels", config, test_share=0.34, most_pool=2)
    assert len(study.test) == 2
    assert not {study.patients[i] for i in study.pool} & {study.patients[i] for i in study.test}
    assert set(smaller.pool) < set(study.pool)
    assert smaller.test == study.test


def test_shares_become_numbers_of_the_pool() -> None:
    plan = PRESETS["metric_core_set"].of_pool(1000)
    assert (plan.start, plan.budgets) == (20, (10, 10, 10, 50, 50, 50, 200))


def test_a_scaled_protocol_says_so() -> None:
    plan = PRESETS["usim"].scaled(0.1)
    assert (plan.start, plan.budgets[0]) == (10, 10)
    assert "start 10 instead of 100" in plan.scale
    assert Protocol().scaled(1).scale == ""


def test_seeds() -> None:
    assert [list(seeds_of(text)) for text in ("3", "2-4", "1,4", "0,2-3")] == [[0, 1, 2], [2, 3, 4], [1, 4], [0, 2, 3]]
