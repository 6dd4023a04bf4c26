"""The figures of a campaign, against plain computations and known distributions."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import strategies
from bench.campaign.claims import CLAIMS, findings
from bench.campaign.composition import compositions, evenness, nearest
from bench.campaign.effort import (
    annotation_hours,
    choosing_seconds,
    foreground,
    foreground_efficiency,
    gain_rate,
    slices_per_unit,
    time_split,
)
from bench.campaign.labels_needed import labels_needed, labels_to
from bench.campaign.penalty import beats, penalty_matrix
from bench.campaign.scores import Runs, Scores, scores_of
from bench.campaign.statistics import (
    Bootstrap,
    Estimate,
    area,
    auc,
    auc_difference,
    class_means,
    curve_difference,
    interval,
    learning_curve,
    stretch,
)
from bench.campaign.tables import Floats, Tables, read_tables
from bench.campaign.verdict import recommend, reference_of, sentence
from loop.errors import BadInput, NotFound

LABELS = ("organ", "wall")
LABELED = (10, 20, 30, 40)


def write(folder: Path, curves: Mapping[str, Floats], *, rng: np.random.Generator, spread: float = 0.0) -> Path:
    """A campaign folder with given mean Dice.

    Args:
        curves: {strategy: (S, R)}; NaN: this round is not there yet.
    """
    scores, picks, timings = [], [], []
    for name, curve in curves.items():
        for (seed, number), mean in np.ndenumerate(curve):
            if np.isnan(mean):
                continue
            where = {"strategy": name, "seed": seed, "round": number}
            labeled = 400 if name == "all" else LABELED[number]
            for volume in range(4):
                for label in LABELS:
                    value = mean + spread * rng.normal()
                    scores.append(
                        where | {"labeled": labeled, "patient": f"00{volume // 2}", "volume": f"v{volume}", "label": label,
                                 "dice_3d": value, "dice_2d": value / 2, "hd95": "", "unknown": "kept"}
                    )  # fmt: skip
            for rank in range(400 if name == "all" else 10):
                picks.append(
                    where | {"rank": rank, "image": f"p{rank % 5}", "slice": 4 * number + rank // 5, "score": "",
                             "voxels_background": 90, "voxels_organ": 10 if rank % 2 else 0, "voxels_wall": 0}
                )  # fmt: skip
            timings.append(where | {"select_s": 1, "sweep_s": len(name), "train_s": 60, "measure_s": 5, "other_s": 0.5})
    facts = {
        "unit": "slice", "rounds": 3, "labels": LABELS, "strategies": list(curves), "seeds": [0, 1, 2],
        "pool_volumes": 5, "pool_slices": 400,
    }  # fmt: skip
    (folder / "campaign.json").write_text(json.dumps(facts))
    for table, rows in (("scores", scores), ("picks", picks), ("timings", timings)):
        pd.DataFrame(rows).to_csv(folder / f"{table}.csv", index=False)
    return folder


def straight(*means: float, seeds: int = 3) -> Floats:
    return np.tile(means, (seeds, 1))


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Three strategies with known curves and an upper bound of 0.8; no noise but between seeds."""
    seed = np.array([-0.01, 0.0, 0.01])[:, None]
    curves = {
        "random": straight(0.2, 0.4, 0.6, 0.74) + seed,
        "usim_f": straight(0.2, 0.6, 0.76, 0.78) + seed,
        "bald": straight(0.2, 0.4, 0.6, 0.74) + seed[::-1],
        "all": straight(0.8),
    }
    return read_tables(write(tmp_path, curves, rng=np.random.default_rng(0)))


def bootstrap(tables: Tables, resamples: int = 500) -> Bootstrap:
    return Bootstrap(scores_of(tables), np.random.default_rng(1), resamples)


def test_class_means_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    dice = rng.random((2, 3, 5, 4))
    dice[rng.random(dice.shape) < 0.3] = np.nan
    dice[0, 0, :, 1] = np.nan
    weights = rng.integers(0, 3, (6, 5)).astype(float)
    found = class_means(dice, weights)
    for b, s, r in np.ndindex(found.shape):
        means = []
        for c in range(4):
            cells = [(weights[b, v], dice[s, r, v, c]) for v in range(5) if not np.isnan(dice[s, r, v, c])]
            if sum(w for w, _ in cells):
                means.append(sum(w * d for w, d in cells) / sum(w for w, _ in cells))
        assert found[b, s, r] == pytest.approx(np.mean(means) if means else np.nan, nan_ok=True)


def test_the_resamples_are_those_of_a_plain_loop() -> None:
    """Seeds and patients drawn, means taken, deviations stretched: one resample at a time, from the same draws."""
    rng = np.random.default_rng(2)
    scores = Scores(
        {"a": Runs((0, 1, 2), np.tile([10.0, 20.0], (3, 1)), rng.random((3, 2, 4, 2)))},
        ("v0", "v1", "v2", "v3"), np.array([0, 0, 1, 2]), LABELS, 2,
    )  # fmt: skip
    known = Bootstrap(scores, np.random.default_rng(3), 20)
    value, samples = known.averaged("a", (0, 1, 2), 2)
    dice = scores.runs["a"].dice
    assert value == pytest.approx(dice.mean((0, 2, 3)))
    seeds = known._seed_weights((0, 1, 2))
    for b in range(20):
        chosen = known._patients[b]
        by_seed = sum(seeds[b, s] * dice[s].mean((1, 2)) for s in range(3))
        both = sum(seeds[b, s] * np.average(dice[s], axis=1, weights=chosen).mean(1) for s in range(3))
        assert samples[b] == pytest.approx(value + stretch(3) * (by_seed - value) + stretch(3) * (both - by_seed))
    assert known._patients[:, 0] == pytest.approx(known._patients[:, 1]), "volumes of one patient go together"


@pytest.mark.parametrize(("seeds", "patients"), [(3, 12), (5, 8)])
def test_intervals_cover_what_they_say(seeds: int, patients: int) -> None:
    """Known truth, noise of seeds, of patients and of each measurement: 95 % intervals, checked loosely."""
    rng, hits, trials = np.random.default_rng(4), 0, 300
    for _ in range(trials):
        dice = (
            0.5
            + 0.03 * rng.normal(size=(seeds, 1, 1, 1))
            + 0.06 * rng.normal(size=(1, 1, patients, 1))
            + 0.05 * rng.normal(size=(seeds, 2, patients, 2))
        )
        labeled = np.tile([10.0, 20.0], (seeds, 1))
        scores = Scores({"a": Runs(tuple(range(seeds)), labeled, dice)}, (), np.arange(patients), LABELS, 2)
        found = auc(Bootstrap(scores, rng, 300), "a")
        hits += found.low <= 0.5 <= found.high
    assert 0.90 <= hits / trials <= 1.0


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(5)
    common = 0.5 + 0.1 * rng.normal(size=(5, 1, 10, 1)) + 0.05 * rng.normal(size=(5, 3, 10, 2))
    labeled = np.tile([10.0, 20.0, 30.0], (5, 1))
    runs = {name: Runs(tuple(range(5)), labeled, common + gain) for name, gain in {"a": 0.02, "b": 0.0}.items()}
    known = Bootstrap(Scores(runs, (), np.arange(10), LABELS, 3), rng, 300)
    one, difference = auc(known, "a"), auc_difference(known, "a", "b")
    assert one.high - one.low > 0.05
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.02, 0.02, 0.02))
    assert curve_difference(known, "a", "b").mean == pytest.approx([0.02] * 3)


def test_the_area_is_a_mean_over_the_range() -> None:
    assert area(np.array([10.0, 20.0, 40.0]), np.array([0.0, 1.0, 1.0])) == pytest.approx((5 + 20) / 30)
    assert np.isnan(area(np.array([10.0]), np.array([0.5])))
    many = area(np.tile([0.0, 1.0], (3, 1)), np.ones((7, 3, 2)))
    assert many.shape == (7, 3)


def test_labels_are_interpolated_or_not_reached() -> None:
    labeled, curve = np.array([10.0, 20.0, 30.0]), np.array([0.2, 0.4, 0.3])
    assert labels_to(0.3, labeled, curve) == pytest.approx(15)
    assert labels_to(0.1, labeled, curve) == 10
    assert labels_to(0.5, labeled, curve) == np.inf


def test_labels_needed_and_saved(tables: Tables) -> None:
    known = bootstrap(tables)
    found = labels_needed(known, "usim_f", "random", 0.9)
    assert found is not None
    assert found.dice == pytest.approx(0.72)
    assert found.labels.value == pytest.approx(20 + 10 * 0.12 / 0.16)
    reference = 30 + 10 * 0.12 / 0.14
    assert found.saved.value == pytest.approx(100 * (1 - 27.5 / reference))
    assert found.labels.low <= 27.5 <= found.labels.high
    far = labels_needed(known, "random", "random", 0.98)
    assert far is not None
    assert far.labels.value == np.inf
    assert np.isnan(far.saved.value)
    assert np.isnan(far.saved.low)


def test_an_interval_may_end_in_not_reached() -> None:
    found = interval(30.0, np.array([20.0, 30.0, np.inf, np.nan]))
    assert (found.low, found.high) == (20.0, np.inf)
    assert np.isnan(interval(1.0, np.array([np.nan])).low)


def test_the_penalty_matrix_of_a_case_by_hand() -> None:
    """Round 1: a beats b and c; round 2: a beats b only; nothing else is significant. Round 0 is common and does not count."""
    noise = np.array([0.0, 0.001, -0.001, 0.002, -0.002])
    means = {"a": (0.9, 0.9, 0.9), "b": (0.1, 0.5, 0.5), "c": (0.5, 0.8, 0.9)}
    turned = {"a": noise, "b": noise[::-1], "c": np.roll(noise, 2)}
    runs = {
        name: Runs(
            tuple(range(5)), np.tile([1.0, 2.0, 3.0], (5, 1)), (np.array(means[name]) + turned[name][:, None])[:, :, None, None]
        )
        for name in means
    }  # fmt: skip
    found = penalty_matrix(Scores(runs, ("v",), np.array([0]), ("x",), 3), ["a", "b", "c"])
    assert found.share.tolist() == [[0, 1, 0.5], [0, 0, 0], [0, 1, 0]]
    assert found.phi == pytest.approx([0, 2 / 3, 1 / 6])
    assert found.seeds == 5


def test_the_t_test_is_the_papers() -> None:
    """Five seeds: t above 2.776."""
    gain = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    t = np.sqrt(5) * gain.mean() / gain.std(ddof=1)
    assert beats(gain * 1.0, np.zeros(5)) == (t > 2.776)
    shifted = gain - (t - 2.7) / t * gain.mean()
    assert not beats(shifted, np.zeros(5))
    assert beats(np.full(3, 0.5), np.full(3, 0.4))
    assert not beats(np.full(3, 0.5), np.full(3, 0.5))


def test_one_seed_has_no_penalties(tmp_path: Path) -> None:
    curves = {"random": straight(0.1, 0.2, seeds=1), "bald": straight(0.1, 0.3, seeds=1)}
    found = penalty_matrix(scores_of(read_tables(write(tmp_path, curves, rng=np.random.default_rng(0)))), list(curves))
    assert found.seeds == 1
    assert np.isnan(found.share[0, 1])
    assert np.isnan(found.phi).all()


def test_compositions(tables: Tables) -> None:
    found = compositions(tables).loc["usim_f"]
    assert found["picks"] == 30
    assert (found["per_volume"], found["spread"]) == (6, pytest.approx(1 / 6))
    assert found["share_organ"] == found["empty"] == 0.5
    assert (found["share_wall"], found["evenness"]) == (0, 0)
    assert found["foreground"] == pytest.approx(5 / 95)
    assert "all" not in compositions(tables).index


def test_the_nearest_pick_looks_back_only() -> None:
    run = pd.DataFrame(
        {"image": list("aaaab"), "slice": [0.0, 5.0, 9.0, 10.0, 3.0], "round": [0, 1, 1, 2, 1], "rank": range(5)}
    )
    assert nearest(run).tolist()[:3] == [4, 4, 1]
    assert np.isnan(nearest(run)[3])


def test_evenness() -> None:
    assert evenness(np.array([5.0, 5.0, 5.0])) == pytest.approx(1)
    assert evenness(np.array([5.0, 0.0])) == 0
    assert np.isnan(evenness(np.zeros(2)))


def test_hours_scribbles_and_seconds(tables: Tables) -> None:
    assert annotation_hours(120, 60) == 2
    assert annotation_hours(120, 60, speedup=15) == pytest.approx(2 / 15)
    assert slices_per_unit(tables) == 1
    assert time_split(tables).loc["random", "train_s"] == 60
    assert choosing_seconds(tables, "random") == 7
    assert choosing_seconds(tables, "nobody") == np.inf


def test_foreground_efficiency_finds_the_rate() -> None:
    used = np.linspace(0, 0.2, 6)
    assert gain_rate(used, np.exp(-9.7 * used)) == pytest.approx(9.7, rel=1e-3)
    assert np.isnan(gain_rate(np.zeros(3), np.ones(3)))
    assert gain_rate(used, np.full(6, 1.1)) == 0


def test_foreground_efficiency_of_a_campaign(tables: Tables) -> None:
    known = bootstrap(tables)
    assert foreground(tables, "bald", 4).tolist() == [50, 100, 150, 200]
    fast, slow = (foreground_efficiency(tables, known, name) for name in ("usim_f", "random"))
    assert fast is not None
    assert slow is not None
    assert fast.used == slow.used == pytest.approx(200 / 2000)
    assert fast.rate > slow.rate > 0


def test_sentences() -> None:
    def say(*figures: float) -> str:
        return sentence("x", Estimate(*figures), "y", 5)

    assert say(0.012, 0.004, 0.020) == "x is better than y by 0.012 [0.004, 0.020] Dice over the curve with 5 seeds"
    assert say(-0.002, -0.010, 0.006) == "x cannot be told from y with 5 seeds (difference -0.002 [-0.010, 0.006])"
    assert say(-0.02, -0.03, -0.01) == "x is worse than y by 0.020 [0.010, 0.030] Dice over the curve with 5 seeds"
    assert "not judged" in say(np.nan, np.nan, np.nan)
    assert "cannot be judged with one seed" in sentence("x", Estimate(0.02, 0.01, 0.03), "y", 1)


def test_the_recommendation_is_the_best_lower_bound(tables: Tables) -> None:
    found = recommend(tables)
    assert found.strategy == "usim_f"
    assert "better than random" in found.reason
    assert found.evidence[0].strategy == "usim_f"
    assert found == recommend(tables), "the same tables, the same words"


def test_cost_breaks_ties(tmp_path: Path) -> None:
    gain = straight(0.2, 0.6, 0.7, 0.8)
    curves = {"random": straight(0.2, 0.3, 0.4, 0.5), "dear_strategy": gain + np.array([0, 1e-4, 0, 0]), "cheap": gain}
    found = recommend(read_tables(write(tmp_path, curves, rng=np.random.default_rng(0))))
    assert found.strategy == "cheap"
    assert "level with" in found.reason


def test_nothing_better_is_said(tmp_path: Path) -> None:
    same = straight(0.2, 0.4, 0.6, 0.7)
    curves = {"foreground_random": same, "random": same, "bald": same}
    found = recommend(read_tables(write(tmp_path, curves, rng=np.random.default_rng(0), spread=0.05)))
    assert found.strategy == "foreground_random"
    assert "None is better than foreground_random with this evidence, and none is better than random" in found.reason


def test_a_partial_campaign(tmp_path: Path) -> None:
    """One strategy has one complete seed, one has none yet, one has not begun."""
    gap = np.nan
    curves = {
        "random": straight(0.2, 0.4, 0.6, 0.7),
        "bald": np.array([[0.2, 0.5, 0.6, 0.8], [0.2, 0.5, gap, gap], [gap] * 4]),
        "usim_f": np.array([[0.2, 0.5, gap, gap], [gap] * 4, [gap] * 4]),
        "badge": np.full((3, 4), gap),
    }
    tables = read_tables(write(tmp_path, curves, rng=np.random.default_rng(0)))
    assert tables.strategies == ["random", "bald", "usim_f"]
    assert tables.missing() == [
        "bald, seed 1: rounds 2 to 3", "bald, seed 2: not there yet", "usim_f, seed 0: rounds 2 to 3",
        "usim_f, seed 1: not there yet", "usim_f, seed 2: not there yet", "badge, seed 0: not there yet",
        "badge, seed 1: not there yet", "badge, seed 2: not there yet",
    ]  # fmt: skip
    known = bootstrap(tables)
    assert learning_curve(known, "bald").seeds == (0,)
    assert len(learning_curve(known, "usim_f").mean) == 2
    assert np.isnan(auc(known, "usim_f").value)
    assert labels_needed(known, "bald", "random", 0.9) is None
    assert foreground_efficiency(tables, known, "bald") is None
    found = recommend(tables)
    assert found.strategy == "random", "one seed recommends nothing"
    assert "bald is ahead so far" in found.reason


def test_the_reference(tables: Tables) -> None:
    assert reference_of(tables) == "random"
    assert reference_of(tables, "bald") == "bald"
    with pytest.raises(NotFound, match="usim_f"):
        reference_of(tables, "badge")


@pytest.mark.parametrize(
    ("table", "change", "told"),
    [
        ("scores", lambda rows: rows.drop(columns="patient"), "lacks patient"),
        ("scores", lambda rows: rows.astype({"dice_3d": object}).replace({"dice_3d": {0.8: "good"}}), "number, got 'good'"),
        ("scores", lambda rows: pd.concat([rows, rows[:1]]), "twice"),
        ("scores", lambda rows: rows[:0], "no scores yet"),
        ("scores", lambda rows: rows[rows["round"] != 1], "has gaps"),
        ("scores", lambda rows: rows[1:], "the same 8 volumes and classes"),
        ("timings", lambda rows: rows.drop(columns=["train_s", "other_s"]), "lacks train_s, other_s"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(tables: Tables, table: str, change: Any, told: str) -> None:
    file = tables.folder / f"{table}.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(BadInput, match=told):
        read_tables(tables.folder)


def test_a_folder_that_is_no_campaign_is_named(tables: Tables, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="simulate"):
        read_tables(tmp_path / "nowhere")
    (tables.folder / "picks.csv").unlink()
    with pytest.raises(BadInput, match=r"picks\.csv"):
        read_tables(tables.folder)
    (tables.folder / "campaign.json").write_text('{"unit": "slice"}')
    with pytest.raises(BadInput, match="lacks rounds"):
        read_tables(tables.folder)


def test_empty_tables_of_a_campaign_that_just_began(tables: Tables) -> None:
    (tables.folder / "picks.csv").write_text("")
    (tables.folder / "timings.csv").write_text("")
    read = read_tables(tables.folder)
    assert compositions(read).empty
    assert time_split(read).empty
    assert recommend(read).strategy == "usim_f"


def test_the_papers_claims_are_about_strategies_that_exist() -> None:
    assert {name for claim in CLAIMS for name in (claim.strategy, *claim.others)} <= set(strategies.names())


def test_a_claim_is_confirmed_contradicted_or_cannot_be_told(tmp_path: Path) -> None:
    curves = {
        "random": straight(0.5, 0.6, 0.7), "max_entropy": straight(0.5, 0.66, 0.76), "bald": straight(0.5, 0.6, 0.7),
        "foreground_random": straight(0.5, 0.63, 0.73), "metric_core_set": straight(0.5, 0.55, 0.6),
    }  # fmt: skip
    write(tmp_path, curves, rng=np.random.default_rng(0), spread=0.002)
    told = read_tables(tmp_path)
    found = {(one.claim.strategy, one.other): one for one in findings(bootstrap(told), told.strategies)}
    assert {pair: one.verdict for pair, one in found.items()} == {
        ("foreground_random", "random"): "confirmed",
        ("foreground_random", "bald"): "confirmed",
        ("foreground_random", "max_entropy"): "contradicted",
        ("metric_core_set", "random"): "contradicted",
        ("metric_core_set", "bald"): "contradicted",
    }
    assert found["foreground_random", "random"].seeds == 3
    alone = replace(found["foreground_random", "random"], seeds=1)
    assert alone.verdict == "cannot tell (one seed)"
    assert replace(alone, seeds=3, difference=Estimate(0.01, -0.01, 0.03)).verdict == "cannot tell"
