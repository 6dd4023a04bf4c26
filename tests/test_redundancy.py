"""Tests of the redundancy experiment: its parts, and the short form from phantoms to the printed tables."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import redundancy
from bench.redundancy import COMPARED, QUICK, RARE, TOP, UNIFORM, Picked, Rule, Swept
from loop.pool import ItemTable, Pool
from strategies._similarity import similarity_kernel
from strategies._submodular import facility_location_mutual_information


def pool_of(lengths: list[int], labeled: tuple[int, ...] = ()) -> Pool:
    """Slices of volumes of these lengths, some labelled."""
    volume = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    marked, held = np.zeros(len(volume), bool), np.zeros(len(volume), bool)
    marked[list(labeled)] = True
    return Pool(
        ItemTable([f"v{n}" for n in range(len(lengths))], volume, position), marked, held, volume, volume, position
    )


@pytest.mark.parametrize(
    ("rule", "rows"), [(Rule.slice, [5]), (Rule.volume, [3, 5, 6]), (Rule.wanted, [1])], ids=lambda value: str(value)
)
def test_a_rule_duplicates_candidates(rule: Rule, rows: list[int]) -> None:
    pool = pool_of([3, 4, 2], labeled=(0, 4))
    uncertainties = np.array([0.2, 0.1, 0.3, 0.9, 0.4, 0.0, 0.1])  # rows 1, 2, 3, 5, 6, 7, 8
    assert redundancy.duplicated(rule, pool, uncertainties, first=1).tolist() == rows


def test_copies_are_items_of_volumes_of_their_own() -> None:
    pool = pool_of([3, 4], labeled=(0,))
    larger, shown = redundancy.with_copies(pool, np.array([3, 5]), 5)
    assert shown.tolist() == [*range(7), 3, 5, 3, 5, 3]
    assert [str(item) for item in larger.items[7:]] == [
        "v1 copy 0 slice 0", "v1 copy 0 slice 2", "v1 copy 1 slice 0", "v1 copy 1 slice 2", "v1 copy 2 slice 0",
    ]  # fmt: skip
    assert larger.volume[7:].tolist() == [2, 2, 3, 3, 4]
    assert (larger.patient[7:] == 1).all()
    assert not larger.labeled[7:].any()
    for name in ("labeled", "volume", "patient", "position"):
        np.testing.assert_array_equal(getattr(larger, name)[:7], getattr(pool, name))


def test_the_start_set_shows_the_rare_structure() -> None:
    rare = np.arange(50) == 17
    for seed in range(5):
        chosen = redundancy.start_set(rare, 6, np.random.default_rng(seed))
        assert len(np.unique(chosen)) == 6
        assert 17 in chosen


def test_uniform_picks_know_no_weights() -> None:
    candidates, query = np.arange(100, 110), np.array([0] * 90 + [3, 5])
    picks = [redundancy.uniform_picks(candidates, query, 1, np.random.default_rng(seed))[0] for seed in range(300)]
    values, counts = np.unique(picks, return_counts=True)
    assert values.tolist() == [100, 103, 105]
    assert counts.min() > 70


def test_the_ratio_is_of_all_seeds_together() -> None:
    def picked(strategy: str, duplicates: int) -> Picked:
        return Picked(Rule.slice, 0, strategy, duplicates, rare=0, query=0.4, before=None)

    found = [picked("usim_f", 1), picked("usim_f", 4), picked(UNIFORM, 8), picked(UNIFORM, 12), picked("random", 9)]
    assert redundancy.ratio(found, Rule.slice) == 0.25
    assert np.isnan(redundancy.ratio(found, Rule.volume))


@pytest.mark.parametrize(("length", "copies"), [(1.0, 1), (3.0, 40)])
def test_mutual_information_spares_copies_unless_they_are_longer_than_the_rest(length: float, copies: int) -> None:
    """A second copy covers nothing new, but gains eta times its squared length as long as it is like a query."""
    rows = np.vstack([np.tile(length * np.eye(60)[0], (100, 1)), np.eye(60)[1:]])
    picked, _ = facility_location_mutual_information(similarity_kernel(rows, rows, metric="dot"), 40)
    assert (picked < 100).sum() == copies


@pytest.mark.slow
def test_the_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Picked] = []
    whole = redundancy.report

    def report(all_picked: list[Picked], setup: redundancy.Setup) -> str:
        found.extend(all_picked)
        return whole(all_picked, setup)

    monkeypatch.setattr(redundancy, "report", report)
    redundancy.main(seeds=None, quick=True)
    assert [(each.rule, each.strategy) for each in found] == [
        (rule, name) for rule in Rule for name in (*COMPARED, UNIFORM, TOP)
    ]
    assert all(0 <= each.duplicates <= QUICK.budget and 0 <= each.rare <= QUICK.budget for each in found)
    assert all(0 < each.query < 1 for each in found)

    # Of the most uncertain slice fewer than uniform sampling, which takes some; one seed says no more.
    uniform = next(each for each in found if each.rule is Rule.slice and each.strategy == UNIFORM)
    assert uniform.duplicates > 0
    assert redundancy.ratio(found, Rule.slice) < 1
    assert redundancy.ratio(found, Rule.slice, redundancy.NORMALIZED) <= redundancy.CLAIM
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {name} ") == len(Rule) for name in (*COMPARED, UNIFORM, TOP))
    assert all(f"show {rule.value};" in printed for rule in Rule)


def test_a_copy_has_the_signals_of_its_original(tmp_path: Path) -> None:
    setup = replace(QUICK, patients=3, start=4, epochs=1, steps=2)
    study = redundancy.phantom_study(tmp_path / "phantoms", setup.patients, 0, setup.shape)
    assert 2 <= study.rare.sum() <= 4, RARE
    labeled = redundancy.start_set(study.rare, setup.start, np.random.default_rng(0))
    pool = redundancy.pool_of(study, labeled)
    assert pool.voxels.sum() == study.voxels[labeled].sum() > 0
    segmenter = redundancy.trained(study, labeled, setup, seed=0)
    needs = redundancy.strategies.get("usim_c").needs
    plain = Swept(segmenter, pool, study.images)
    plain.compute(needs)
    row = int(pool.candidates[7])
    larger, _ = redundancy.with_copies(pool, np.array([row]), 3)
    path = study.images[int(pool.volume[row])]
    for known in (None, plain.signals):
        swept = Swept(segmenter, larger, [*study.images, path, path, path], known)
        swept.compute(needs)
        gradient = swept.signals[needs[1].name]
        assert gradient.shape[0] == len(larger)
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient[-3:], gradient[[row] * 3], atol=1e-5 * scale)
        np.testing.assert_array_equal(gradient[: len(pool)], plain.signals[needs[1].name])
