"""The report of a campaign: a page that needs nothing else, also of a campaign that still runs."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.campaign.report import write_report
from bench.campaign.summary import Summary
from bench.campaign.tables import read_tables
from bench.phantom import LABELS, SMALL, write_phantoms
from datastore.labels import voxels_of
from datastore.volume_io import read_volume
from loop.errors import NotFound

ROOT = Path(__file__).parent.parent
STRATEGIES = {
    "random": 0.10,
    "foreground_random": 0.14,
    "max_entropy": 0.15,
    "usim_f": 0.20,
    "stochastic_batches_bald": 0.16,
}
"""How fast each learns, per ten slices."""
SEEDS, ROUNDS, BUDGET = (0, 1, 2), 6, 10
HARDNESS = dict(zip(LABELS, (0.95, 0.85, 0.80, 0.55), strict=True))


def write_campaign(folder: Path, images: Path, masks: Path, *, unit: str = "slice") -> Path:
    """A folder as `nextslice simulate` writes it, with scores that rise as real ones do and picks of phantom volumes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    ids = sorted(file.name.removesuffix(".nii.gz") for file in images.glob("*.nii.gz"))
    voxels = {}
    for name in ids:
        mask = read_volume(masks / f"{name}.nii.gz").array
        voxels[name] = voxels_of(mask, 2, range(mask.shape[2]), len(LABELS) + 1)
    pool = [(name, number) for name in ids for number in range(len(voxels[name]))]
    patient = 0.05 * rng.normal(size=12)
    scores: list[dict[str, Any]] = []
    picks: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []

    def score(name: str, seed: int, number: int, labeled: int, share: float, luck: float) -> None:
        for volume in range(12):
            for label, best in HARDNESS.items():
                dice = np.clip(best * share + patient[volume] + luck + 0.04 * rng.normal(), 0, 1)
                absent = label == "lesion" and volume % 3
                scores.append(
                    {"strategy": name, "seed": seed, "round": number, "labeled": labeled, "patient": f"patient{volume:03d}",
                     "volume": f"patient{volume:03d}", "label": label, "dice_2d": "" if absent else round(0.95 * dice, 6),
                     "dice_3d": "" if absent else round(dice, 6), "hd95": "", "msd": ""}
                )  # fmt: skip

    def pick(name: str, seed: int, number: int, rank: int, item: tuple[str, int], wanted: float | str) -> None:
        counts = voxels[item[0]][item[1]] if unit == "slice" else np.sum(voxels[item[0]], axis=0).tolist()
        named = {f"voxels_{label}": count for label, count in zip(("background", *LABELS), counts, strict=True)}
        where = {"strategy": name, "seed": seed, "round": number, "rank": rank, "image": item[0]}
        picks.append(where | {"slice": item[1] if unit == "slice" else "", "score": wanted} | named)

    for seed in SEEDS:
        luck = 0.015 * rng.normal()
        score("all", seed, 0, len(pool), 1.0, luck)
        for rank, item in enumerate(pool):
            pick("all", seed, 0, rank, item, "")
        for name, speed in STRATEGIES.items():
            order = rng.permutation(len(pool))
            if name != "random":
                order = sorted(order, key=lambda row: -sum(voxels[pool[row][0]][pool[row][1]][1:]) * rng.random())
            for number in range(ROUNDS):
                share = 1 - 0.75 * np.exp(-1.6 * number * speed / 0.2)
                score(name, seed, number, BUDGET * (number + 1), share, luck + 0.01 * rng.normal())
                for rank, row in enumerate(order[BUDGET * number : BUDGET * (number + 1)]):
                    pick(name, seed, number, rank, pool[row], round(1.0 - rank / 20 + 0.01 * rng.random(), 4))
                sweep = 0.0 if name == "random" else 8 * speed / 0.1
                timings.append(
                    {"strategy": name, "seed": seed, "round": number, "select_s": 0.05 + sweep / 9, "sweep_s": sweep,
                     "train_s": 31 + rng.random(), "measure_s": 6.5, "other_s": 0.8}
                )  # fmt: skip
    (folder / "maps").mkdir()
    for name in list(STRATEGIES)[1:4]:
        state = np.repeat(np.array([0, 1, 2], np.int8), (240, 50, 10))
        points = rng.normal(size=(300, 2)) + 3 * rng.integers(0, 3, (300, 1))
        np.savez(folder / "maps" / f"{name}-seed0.npz", points=points.astype(np.float32), state=state)
    facts = {
        "title": "Phantoms, slice by slice", "command": "nextslice simulate --images phantoms --seeds 0,1,2", "unit": unit,
        "start": BUDGET, "budget": BUDGET, "rounds": ROUNDS - 1, "protocol": "scratch", "model": "unet2d",
        "labels": list(LABELS), "strategies": [*STRATEGIES, "all"], "seeds": list(SEEDS),
        "scale": "6 rounds of 10 slices and 3 seeds instead of 10 rounds of 100 and 5 seeds.", "images": str(images),
        "masks": str(masks), "test_patients": 12, "pool_volumes": len(ids), "pool_slices": len(pool),
        "settings": {"epochs": 12}, "versions": {"torch": "2.13"}, "preset": "",
    }  # fmt: skip
    (folder / "campaign.json").write_text(json.dumps(facts))
    for table, rows in (("scores", scores), ("picks", picks), ("timings", timings)):
        pd.DataFrame(rows).to_csv(folder / f"{table}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, patients=8, shape=SMALL)
    return folder


@pytest.fixture(scope="module")
def whole(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete campaign with its report."""
    folder = write_campaign(tmp_path_factory.mktemp("campaign") / "out", phantoms / "images", phantoms / "labels")
    write_report(folder)
    return folder


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out by the code under test, and not turned into pixels, which takes the longest."""
    monkeypatch.setattr("bench.campaign.report._png", lambda figure: b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def campaign(whole: Path, tmp_path: Path) -> Path:
    """A copy without report, to change."""
    copy = tmp_path / "out"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("figures", "report.html"))
    return copy


class Page(HTMLParser):
    """What is in a page: tags with their attributes, headings in order, and text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


PICTURES = ("learning-curves", "learning-curves-2d", "class-curves", "differences", "penalties", "picks", "thumbnails", "maps",
            "times")  # fmt: skip


def test_the_page_has_every_figure_and_needs_nothing_else(whole: Path) -> None:
    page = Page(whole / "report.html")
    assert {file.stem for file in (whole / "figures").iterdir()} == set(PICTURES)
    assert len(page.of("img")) == len(PICTURES)
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in page.of("img"))
    assert not {"script", "link", "iframe", "a", "object"} & {tag for tag, _ in page.tags}
    policy = next(str(meta["content"]) for meta in page.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "http://" not in page.text
    assert "Not shown" not in page.text


def test_headings_are_in_order_and_tables_have_captions(whole: Path) -> None:
    page = Page(whole / "report.html")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.of("table")) == len(page.of("caption")) == 9
    assert all("scope" in cell for cell in page.of("th"))


def test_the_page_says_what_the_figures_say(whole: Path) -> None:
    text = Page(whole / "report.html").text
    found = Summary.of(read_tables(whole)).recommendation
    assert found.strategy == "usim_f"
    assert found.reason in text
    for said in ("nextslice simulate --images phantoms", "instead of 10 rounds", "What can and cannot be said", "Φ"):
        assert said in text
    assert "What is missing" not in text


def test_the_same_tables_give_the_same_page(whole: Path, campaign: Path) -> None:
    assert write_report(campaign).read_text() == (whole / "report.html").read_text()


@pytest.mark.usefixtures("unpainted")
def test_a_campaign_that_still_runs(campaign: Path) -> None:
    for name in ("scores", "picks", "timings"):
        rows = pd.read_csv(campaign / f"{name}.csv", dtype=str)
        number, seed = rows["round"].astype(int), rows["seed"].astype(int)
        kept = (seed == 0) & (rows["strategy"] != "all") & ((rows["strategy"] != "usim_f") | (number < 3))
        rows[kept & (rows["strategy"] != "max_entropy")].to_csv(campaign / f"{name}.csv", index=False)
    text = Page(write_report(campaign)).text
    for said in (
        "What is missing", "usim_f, seed 0: rounds 3 to 5", "max_entropy, seed 1: not there yet", "all, seed 0: not there yet",
        "One seed shows nothing", "usim_f is not judged against foreground_random yet", "there is no t-test",
        "it needs the upper bound",
    ):  # fmt: skip
        assert said in text


@pytest.mark.usefixtures("unpainted")
def test_starts_that_are_not_the_same_are_said(campaign: Path) -> None:
    def same(*seeds: int) -> list[str]:
        """Those seeds begin alike, the upper bound aside; what both reports say of the others."""
        rows = pd.read_csv(campaign / "scores.csv")
        begun = (rows["round"] == 0) & (rows["strategy"] != "all") & rows["seed"].isin(seeds)
        first = rows[begun].groupby(["seed", "volume", "label"])["dice_3d"].transform("first")
        rows.loc[begun, "dice_3d"] = first
        rows.to_csv(campaign / "scores.csv", index=False)
        page = Page(write_report(campaign)).text
        texts = (page, (campaign / "report.md").read_text())
        return [found for text in texts for found in re.findall(r"With (seeds? .+?) not all strategies begin", text)]

    assert same(1) == ["seeds 0, 2"] * 2
    assert same(0, 1) == ["seed 2"] * 2
    assert same(0, 1, 2) == []


@pytest.mark.usefixtures("unpainted")
def test_a_campaign_after_its_start_only(campaign: Path) -> None:
    for name in ("scores", "picks", "timings"):
        rows = pd.read_csv(campaign / f"{name}.csv", dtype=str)
        rows[(rows["round"] == "0") & (rows["strategy"] == "random")].to_csv(campaign / f"{name}.csv", index=False)
    assert "Nothing can be compared" in Page(write_report(campaign)).text


@pytest.mark.usefixtures("unpainted")
def test_images_that_are_gone_are_said_to_be(campaign: Path) -> None:
    change(campaign, images="/nowhere", masks="/nowhere")
    shutil.rmtree(campaign / "maps")
    page = Page(write_report(campaign))
    assert page.text.count("Not shown") == 2
    assert len(page.of("img")) == len(PICTURES) - 2


@pytest.mark.usefixtures("unpainted")
def test_volumes_instead_of_slices(tmp_path: Path, phantoms: Path) -> None:
    folder = write_campaign(tmp_path / "out", phantoms / "images", phantoms / "labels", unit="volume")
    rows = pd.read_csv(folder / "picks.csv", dtype=str)
    rows.drop_duplicates(["strategy", "seed", "round", "image"]).to_csv(folder / "picks.csv", index=False)
    page = Page(write_report(folder))
    assert "volumes needed" in page.text
    assert len(page.of("img")) == len(PICTURES)


@pytest.mark.usefixtures("unpainted")
def test_every_string_is_escaped(campaign: Path) -> None:
    bad = '<script>alert("x")</script>'
    change(campaign, title=bad, command=bad, scale=bad, settings={bad: bad})
    for name in ("scores", "picks", "timings"):
        file = campaign / f"{name}.csv"
        file.write_text(file.read_text().replace("max_entropy", "<img src=y>$_$|").replace("patient001", "../<b>"))
    written = write_report(campaign).read_text()
    assert "<script" not in written
    assert "<img src=y" not in written
    assert "<b>" not in written
    assert "&lt;script&gt;" in written
    told = re.sub(r"```sh\n.*?\n```", "", (campaign / "report.md").read_text(), flags=re.DOTALL)
    assert "<" not in told
    for table in re.findall(r"(?:^\|.*\n)+", told, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.usefixtures("unpainted")
def test_the_main_of_it_is_markdown(campaign: Path) -> None:
    write_report(campaign)
    told = (campaign / "report.md").read_text()
    shown = re.findall(r"\]\((figures/.+?)\)", told)
    assert shown
    assert all((campaign / name).is_file() for name in shown)
    assert "| random |" in told


@pytest.mark.usefixtures("unpainted")
def test_a_wide_campaign_of_many_strategies_and_classes(campaign: Path) -> None:
    rows = pd.read_csv(campaign / "scores.csv", dtype=str)
    own = rows[rows["strategy"] == "max_entropy"]
    more = [own.assign(strategy=f"strategy_with_a_rather_long_name_{number}") for number in range(8)]
    pd.concat([rows, *more]).to_csv(campaign / "scores.csv", index=False)
    assert len(Page(write_report(campaign)).of("img")) == len(PICTURES)


def test_the_command(campaign: Path, tmp_path: Path, nextslice: Callable[..., Any]) -> None:
    out = tmp_path / "page.html"
    done = nextslice("report", str(campaign), "--out", str(out), "--reference", "random", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Compared with random" in Page(out).text
    with pytest.raises(NotFound, match="foreground_random"):
        write_report(campaign, reference="best")
    nowhere = nextslice("report", str(tmp_path / "nowhere"), cwd=ROOT)
    assert nowhere.returncode == 2
    assert "campaign.json" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


def change(folder: Path, **facts: Any) -> None:
    file = folder / "campaign.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
