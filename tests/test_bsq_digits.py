"""The digits experiment of BSQ's appendix: its parts by hand, and a short run from the command line."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench import bsq_digits
from bench.bsq_digits import Digits, class_entropy, entropies, imbalanced, measure, report

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


def test_all_rules_start_alike_and_bsq_evens_out_the_classes(groups: Digits) -> None:
    curves = measure(groups, draws=3, rounds=4)
    assert {values.shape for values in curves.values()} == {(3, 5)}
    for values in curves.values():
        np.testing.assert_array_equal(values[:, 0], curves["random"][:, 0])
        assert (values[:, 4] > values[:, 0]).all()
    assert curves["bsq"][:, 1:].mean() > curves["random"][:, 1:].mean()
    again = measure(groups, draws=3, rounds=4)
    assert all(np.array_equal(curves[rule], again[rule]) for rule in curves)
    assert "| 3 " in report(curves)
    start = imbalanced(groups.classes, np.random.default_rng([0, 0]))
    assert entropies(groups, "bsq", start, 2, np.random.default_rng(0)) == curves["bsq"][0, :3].tolist()


def test_a_short_run_prints_the_table_and_draws_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bsq_digits.main([str(tmp_path / "out"), "--epochs", "1", "--draws", "2", "--rounds", "2"])
    printed = capsys.readouterr().out
    assert "even classes: 2.303" in printed
    assert "| 2 " in printed
    assert (tmp_path / "out" / "bsq-digits.png").read_bytes().startswith(b"\x89PNG")
