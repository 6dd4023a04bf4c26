"""The digits experiment of BSQ's appendix: its parts by hand, and a short run from the command line."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench import bsq_digits
from bench.bsq_digits import (
    RULES,
    Digits,
    Rule,
    class_entropy,
    difference,
    entropies,
    even_draws,
    fit,
    imbalanced,
    measure,
    picks,
    report,
    thinned,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def groups() -> Digits:
    """Ten classes, each around a place of its own."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(10), 40)
    return Digits((3 * rng.standard_normal((10, 5)))[classes] + 0.3 * rng.standard_normal((400, 5)), classes)


def test_class_entropy_by_hand() -> None:
    assert class_entropy(np.array([3, 3, 3])) == 0
    assert class_entropy(np.arange(10)) == pytest.approx(math.log(10))
    assert class_entropy(np.array([0, 0, 1, 4])) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


def test_three_classes_are_ten_times_as_rare_at_the_start() -> None:
    classes = np.repeat(np.arange(10), 1000)
    rare = []
    for seed in range(400):
        start = imbalanced(classes, np.random.default_rng(seed))
        assert len(set(start.tolist())) == 10
        chosen = np.random.default_rng(seed).choice(10, 3, replace=False)
        rare.append(np.isin(classes[start], chosen).mean())
    assert np.mean(rare) == pytest.approx(0.3 / 7.3, abs=0.01)


def test_an_imbalanced_pool_has_a_tenth_of_three_classes() -> None:
    classes = np.tile(np.arange(10), 100)
    rare = set()
    for seed in range(20):
        rows = thinned(classes, np.random.default_rng(seed))
        assert (np.diff(rows) > 0).all()
        counts = np.bincount(classes[rows])
        assert sorted(counts.tolist()) == [10] * 3 + [100] * 7
        rare |= set(np.flatnonzero(counts == 10).tolist())
    assert rare == set(range(10))


def test_the_entropy_of_the_picks_alone_leaves_the_start_out() -> None:
    classes, chosen = np.array([0, 0, 1, 1, 2]), np.array([[2], [4]])
    both = entropies(classes, np.array([0, 1]), chosen)
    assert both == pytest.approx([0, class_entropy(np.array([0, 0, 1])), class_entropy(np.array([0, 0, 1, 2]))])
    first, *alone = entropies(classes, np.empty(0, int), chosen)
    assert math.isnan(first)
    assert alone == pytest.approx([0, math.log(2)])


def test_draws_of_one_pool_count_as_one() -> None:
    values, others = np.array([1.0, 3.0, 4.0, 8.0]), np.ones(4)
    mean, error = difference(values, others, np.array([0, 1, 0, 1]))
    assert mean == pytest.approx(3)
    assert error == pytest.approx(1.5)
    assert difference(values, others, np.arange(4))[1] == pytest.approx(np.std([0, 2, 3, 7], ddof=1) / 2)
    assert math.isnan(difference(values, others, np.zeros(4))[1])


def test_the_fit_of_everything_is_the_pools() -> None:
    latents = np.array([[0.0, 0.0], [2.0, 4.0], [0.0, 0.0], [2.0, 4.0]])
    (gap, spread), (all_gap, all_spread) = fit(latents, np.array([0, 2]), np.array([[1, 3]]))
    assert (gap, spread) == pytest.approx((1, (0.001 / 1 + 0.001 / 2) / 2))
    assert (all_gap, all_spread) == pytest.approx((0, 1))


def test_all_rules_start_alike_and_bsq_evens_out_the_classes(groups: Digits) -> None:
    found = measure(even_draws(groups, 3), rounds=4)
    curves = found.annotated
    assert {values.shape for values in curves.values()} == {(3, 5)}
    for values in curves.values():
        np.testing.assert_array_equal(values[:, 0], curves["random"][:, 0])
        assert (values[:, 4] > values[:, 0]).all()
    assert curves["bsq"][:, 1:].mean() > curves["random"][:, 1:].mean()
    assert (found.gap["bsq"][:, 1:] < found.gap["random"][:, 1:]).all()
    again = measure(even_draws(groups, 3), rounds=4).annotated
    assert all(np.array_equal(curves[rule], again[rule]) for rule in curves)
    assert "| 3 " in report(found, "groups")
    start = imbalanced(groups.classes, np.random.default_rng([0, 0]))
    chosen = picks(groups, RULES["bsq"], start, 2, np.random.default_rng([0, 0, 1]))
    assert entropies(groups.classes, start, chosen) == curves["bsq"][0, :3].tolist()


def test_eq_7_chooses_among_candidates_that_are_drawn_anew_in_each_round(groups: Digits) -> None:
    start = imbalanced(groups.classes, np.random.default_rng(5))
    chosen = picks(groups, Rule(12), start, 20, np.random.default_rng(1))
    assert len(set(chosen.ravel().tolist()) | set(start.tolist())) == 210
    rng, labeled = np.random.default_rng(1), np.isin(np.arange(400), start)
    for some in chosen:
        assert set(some.tolist()) < set(rng.choice(np.flatnonzero(~labeled), 12, replace=False).tolist())
        labeled[some] = True
    # Ten of ten are a random draw; with more candidates than there are, all are looked at.
    drawn = picks(groups, RULES["random"], start, 1, np.random.default_rng(2))[0]
    free = np.flatnonzero(~np.isin(np.arange(400), start))
    assert set(drawn.tolist()) == set(np.random.default_rng(2).choice(free, 10, replace=False).tolist())
    everything = (picks(groups, Rule(n), start, 3, np.random.default_rng(3)).tolist() for n in (1000, None))
    assert next(everything) == next(everything)


def test_a_short_run_prints_the_table_and_draws_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bsq_digits.main([str(tmp_path / "out"), "--epochs", "1", "--draws", "2", "--rounds", "2"])
    printed = capsys.readouterr().out
    assert "even classes: 2.303" in printed
    assert "| 2 " in printed
    assert "imbalanced pool: entropy above random's, 2 draws" in printed
    assert "| 160 " in printed
    assert "nan" not in printed
    assert (tmp_path / "out" / "bsq-digits.png").read_bytes().startswith(b"\x89PNG")
