"""The contract that every registered strategy keeps, and an oracle for each."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

import strategies
from loop.errors import BadInput, NotFound
from loop.pool import WHOLE, ItemTable, Pool
from loop.signals import TASK, PoolMean
from loop.views import Gradients
from strategies import Selection, Strategy, _registry
from strategies._pixel_uncertainty import PixelUncertainty
from strategies._signals import FOREGROUND_FRACTION
from strategies._topk import top_k
from strategies.bald import Bald
from strategies.core_set import CoreSet
from strategies.foreground_random import ForegroundRandom
from strategies.least_confidence import LeastConfidence
from strategies.margin import Margin
from strategies.max_entropy import MaxEntropy
from strategies.mc_variance import McVariance
from strategies.power import Power
from strategies.random import Random
from strategies.spread import Spread
from strategies.spread_over_volumes import SpreadOverVolumes
from strategies.stochastic_batches import StochasticBatches

pytestmark = pytest.mark.usefixtures("short_graph_training")

Array = np.ndarray
NAMES = strategies.names()
DRAW = {"seed": 0, "round_no": 1}
NEEDY = [name for name in NAMES if strategies.get(name).needs]
VECTORS = {
    "bottleneck": 6,
    "contrastive": 6,
    "info_vae_latent": 5,
    "alges_image": 12,
    "alges_semantic": 3,
    "class": 3,
    "mc_class": 3,
    "gradients": 8,
    "fisher": 20,
}
"""D of the signals that are (N, D), by the beginning of their names; all others are (N,)."""


def width(name: str) -> tuple[int, ...]:
    """() or (D,)."""
    return next(((d,) for begin, d in VECTORS.items() if name.startswith(begin)), ())


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def make_pool(
    lengths: Sequence[int], *, labeled: Sequence[int] = (), held: Sequence[int] = (), whole: bool = False
) -> Pool:
    """Volumes of so many slices (or, whole, of one row each), each volume its own patient; arrays are read-only."""
    volume = np.repeat(np.arange(len(lengths)), lengths)
    position = np.full(len(volume), WHOLE) if whole else np.concatenate([np.arange(n) for n in lengths] or [[]])
    position = position.astype(np.int64)
    marks = [np.isin(np.arange(len(volume)), rows) for rows in (labeled, held)]
    items = ItemTable([f"image_{i}" for i in range(len(lengths))], volume, position)
    return Pool(items, *(frozen(array) for array in (*marks, volume, volume.copy(), position)))


def permuted(pool: Pool, order: Array) -> Pool:
    """The pool whose row i is row order[i] of `pool`."""
    arrays = [getattr(pool, name)[order] for name in ("labeled", "held", "volume", "patient", "position")]
    return Pool(ItemTable(pool.items.image_ids, arrays[2], arrays[4]), *arrays)


def make_signals(
    strategy: Strategy, pool: Pool, seed: int = 0, constant: bool = False, *, k: int = 1, draw: Mapping[str, int] = DRAW
) -> dict[str, Array]:
    """Everything a strategy wants for one question, as a sweep would answer it, in as many stages as it takes."""
    found: dict[str, Array] = {}
    while wanted := strategy.wants(pool, found, k, **draw):
        for need in wanted:
            rng = np.random.default_rng([seed, *need.name.encode()])
            gradient_size = len(need.view.indices or ()) if isinstance(need.view, Gradients) else 0
            columns = (gradient_size,) if gradient_size else width(need.name)
            shape = (*(() if isinstance(need, PoolMean) else (len(pool),)), *columns)
            values = np.full(shape, 0.5) if constant else rng.random(shape)
            found[need.name] = frozen(values.astype(np.float32))
    return found


POOLS = {
    "none labelled": make_pool([7, 5, 3]),
    "some labelled, some held": make_pool([7, 5, 3, 1], labeled=[0, 6, 9, 15], held=[1, 2, 10]),
    "one volume": make_pool([9], labeled=[4]),
    "one candidate": make_pool([3, 2], labeled=[0, 1, 4], held=[2]),
    "N = 1": make_pool([1]),
    "whole volumes": make_pool([1] * 6, labeled=[2], whole=True),
}


def asked(name: str, pool: Pool, k: int, *, seed: int = 0, round_no: int = 1, constant: bool = False) -> Selection:
    strategy, draw = strategies.get(name), {"seed": seed, "round_no": round_no}
    return strategy.ask(pool, make_signals(strategy, pool, constant=constant, k=k, draw=draw), k, **draw)


@cache
def random_ones() -> frozenset[str]:
    """The strategies whose answer to the same question differs between rounds."""

    def answers(name: str) -> set[tuple[int, ...]]:
        return {tuple(asked(name, POOLS["none labelled"], 4, round_no=n).rows.tolist()) for n in range(8)}

    return frozenset(name for name in NAMES if len(answers(name)) > 1)


# --- the contract


@pytest.mark.parametrize("constant", [False, True], ids=["scores differ", "scores equal"])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_k_distinct_candidates(name: str, pool: Pool, constant: bool) -> None:
    m = len(pool.candidates)
    for k in sorted({1, 2, m // 2 + 1, m, m + 5}):
        selection = asked(name, pool, k, constant=constant)
        assert len(set(selection.rows.tolist())) == len(selection.rows) == len(selection.scores) == min(k, m)
        assert set(selection.rows.tolist()) <= set(pool.candidates.tolist())
        assert np.isfinite(selection.scores).all()
        assert len(selection.why) == min(k, m)
        assert all(isinstance(reason, str) and reason for reason in selection.why)


@pytest.mark.parametrize("pool", [make_pool([]), make_pool([2], labeled=[0], held=[1])], ids=["N = 0", "none left"])
@pytest.mark.parametrize("name", NAMES)
def test_no_candidates_give_an_empty_selection(name: str, pool: Pool) -> None:
    selection = asked(name, pool, 3)
    assert len(selection.rows) == len(selection.scores) == len(selection.why) == 0


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_answer(name: str) -> None:
    for pool in POOLS.values():
        first, second = (asked(name, pool, 4, seed=5, round_no=7) for _ in range(2))
        np.testing.assert_array_equal(first.rows, second.rows)
        np.testing.assert_array_equal(first.scores, second.scores)
        assert first.why == second.why


def test_the_random_ones_answer_differently_each_round_and_seed() -> None:
    assert {"random", "foreground_random", "spread", "sb_max_entropy"} <= random_ones()
    for name in random_ones():
        assert len({tuple(asked(name, POOLS["none labelled"], 4, seed=n).rows.tolist()) for n in range(8)}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_untouched(name: str) -> None:
    pool, strategy = POOLS["some labelled, some held"], strategies.get(name)
    arrays = {spec.name: getattr(pool, spec.name) for spec in fields(pool) if spec.name != "items"}
    signals = make_signals(strategy, pool, k=5)
    before = {key: value.copy() for key, value in (arrays | signals).items()}
    for value in signals.values():
        value.flags.writeable = False
    strategy.ask(pool, signals, 4, seed=0, round_no=1)
    for key, value in (arrays | signals).items():
        np.testing.assert_array_equal(value, before[key])


def test_permuted_rows_give_the_permuted_answer() -> None:
    deterministic = set(NAMES) - random_ones()
    assert {"max_entropy", "margin", "least_confidence"} <= deterministic
    pool = POOLS["some labelled, some held"]
    order = np.random.default_rng(3).permutation(len(pool))
    for name in deterministic:
        strategy = strategies.get(name)
        signals = make_signals(strategy, pool, k=5)
        moved = {key: value[order] for key, value in signals.items()}
        straight = strategy.ask(pool, signals, 5, seed=0, round_no=1)
        crossed = strategy.ask(permuted(pool, order), moved, 5, seed=0, round_no=1)
        np.testing.assert_array_equal(order[crossed.rows], straight.rows)
        np.testing.assert_allclose(crossed.scores, straight.scores, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "kind"), [(3, "a candidate"), (0, "labelled")])
@pytest.mark.parametrize("name", NEEDY)
def test_nan_is_refused_and_names_the_item(name: str, row: int, kind: str, bad: float) -> None:
    pool, strategy = POOLS["some labelled, some held"], strategies.get(name)
    signals = make_signals(strategy, pool, k=2)
    for key in signals:
        broken = {**signals, key: signals[key].copy()}
        broken[key][row] = bad
        whose = str(pool.items[row]) if len(signals[key]) == len(pool) else key
        with pytest.raises(ValueError, match=re.escape(whose)):
            strategy.ask(pool, broken, 2, seed=0, round_no=1)


@pytest.mark.parametrize("name", NEEDY)
def test_nan_of_a_held_row_is_allowed(name: str) -> None:
    pool, strategy = POOLS["some labelled, some held"], strategies.get(name)
    clean = make_signals(strategy, pool, k=9)
    holes = {key: value.copy() for key, value in clean.items()}
    for value in holes.values():
        if len(value) == len(pool):
            value[pool.held] = np.nan
    with_holes, without = (strategy.ask(pool, signals, 9, seed=0, round_no=1) for signals in (holes, clean))
    np.testing.assert_array_equal(with_holes.rows, without.rows)
    assert with_holes.why == without.why


@pytest.mark.parametrize("name", NEEDY)
def test_signals_must_be_there_and_aligned(name: str) -> None:
    pool, strategy = POOLS["none labelled"], strategies.get(name)
    signals = make_signals(strategy, pool, k=2)
    for key in signals:
        with pytest.raises(ValueError, match=f"needs the signal '{re.escape(key)}', got "):
            strategy.ask(pool, {name: value for name, value in signals.items() if name != key}, 2, seed=0, round_no=1)
    for key in [need.name for need in strategy.needs]:
        value = signals[key]
        for wrong in (value[1:], np.concatenate([value, value]), np.float32(1)):
            with pytest.raises(ValueError, match=f"{re.escape(key)}.* {len(pool)} rows"):
                strategy.ask(pool, {**signals, key: wrong}, 2, seed=0, round_no=1)


@pytest.mark.parametrize("k", [0, -1])
@pytest.mark.parametrize("name", NAMES)
def test_k_below_one_is_refused(name: str, k: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        asked(name, POOLS["none labelled"], k)


@dataclass(frozen=True)
class Given(Strategy):
    """Selects what it was given."""

    name = "given"
    asks_for = "what it was given"

    selection: Selection | None = None

    def select(self, pool: Pool, signals: Mapping[str, Array], k: int, rng: np.random.Generator) -> Selection:
        assert self.selection is not None
        return self.selection


@pytest.mark.parametrize(
    ("rows", "scores", "why", "message"),
    [
        ([0, 1], [2.0, 1.0, 0.0], (), "3 rows with 3 scores"),
        ([0, 1, 2], [2.0, 1.0], (), "3 rows with 3 scores"),
        ([0, 1, 1], [2.0, 1.0, 0.0], (), "twice"),
        ([0, 1, 4], [2.0, 1.0, 0.0], (), "not candidates"),
        ([0, 1, 99], [2.0, 1.0, 0.0], (), "not candidates"),
        ([0, 1, 2], [2.0, np.nan, 0.0], (), "not finite"),
        ([0, 1, 2], [2.0, 1.0, 0.0], ("one",), "no reason or 3"),
    ],
)
def test_a_strategy_that_breaks_its_promise_is_caught(
    rows: list[int], scores: list[float], why: tuple[str, ...], message: str
) -> None:
    strategy = Given(Selection(np.array(rows), np.array(scores), why))
    with pytest.raises(ValueError, match=message):
        strategy.ask(make_pool([5], labeled=[4]), {}, 3, seed=0, round_no=1)


# --- the registry


def test_names_are_url_parts_and_sorted() -> None:
    assert sorted(NAMES) == NAMES
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in NAMES)


def test_the_table_describes_every_strategy() -> None:
    rows = strategies.table()
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        assert row["asks_for"]
        assert "\n" not in row["asks_for"]
        assert row["needs_model"] == any(need.model == TASK for need in strategies.get(row["name"]).needs)
        assert all(parameter["help"] for parameter in row["parameters"])
        defaults = {parameter["name"]: parameter["default"] for parameter in row["parameters"]}
        assert strategies.get(row["name"], defaults) == strategies.get(row["name"])


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("entropy", {}, NotFound, r"'entropy'. Known: .*max_entropy, .*spread"),
        ("random", {"fraction": 0.5}, BadInput, r"'fraction'. Known: none"),
        ("foreground_random", {"share": 0.5}, BadInput, r"'share'. Known: fraction"),
        ("sb_max_entropy", {"inner": "bald"}, BadInput, r"'inner'. Known: resample, aggregate"),
        (
            "power",
            {"inner": "core_set"},
            BadInput,
            r"'inner' of 'power' must be one of bald, .*, got 'core_set'",
        ),
        ("power", {"inner": "margin"}, BadInput, r"must be one of bald, .*, got 'margin'"),
        ("power", {"inner": "power_bald"}, BadInput, r"must be one of bald, .*, got 'power_bald'"),
        ("spread_over_volumes", {"inner": "spread_over_volumes"}, BadInput, r"must be one of alges_img, "),
        ("spread_over_volumes", {"inner": ["bald"]}, BadInput, r"got \['bald'\]"),
        ("stochastic_batches", {"inner": "bald", "views": 3}, BadInput, r"'views'. Known: resample, passes, rate"),
        ("power_bald", {"passes": True}, BadInput, r"must be int, got True"),
        ("foreground_random", {"fraction": "half"}, BadInput, r"must be float, got 'half'"),
        ("foreground_random", {"fraction": True}, BadInput, r"must be float, got True"),
        ("sb_max_entropy", {"resample": 1}, BadInput, r"must be bool, got 1"),
        ("foreground_random", {"fraction": 1.01}, BadInput, r"fraction must be between 0 and 1, got 1.01"),
        ("foreground_random", {"fraction": float("nan")}, BadInput, r"between 0 and 1, got nan"),
        ("max_entropy", {"aggregate": "median"}, BadInput, r"aggregate must be one of mean, sum, got 'median'"),
    ],
)
def test_wrong_parameters_are_refused_and_the_known_ones_listed(
    name: str, parameters: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        strategies.get(name, parameters)


def test_parameters_change_the_strategy() -> None:
    assert strategies.get("foreground_random", {"fraction": 1}) == ForegroundRandom(fraction=1)
    assert strategies.get("sb_max_entropy", {"resample": True}) == StochasticBatches(MaxEntropy(), resample=True)
    assert strategies.get("sb_mc_variance", {"passes": 3}) == StochasticBatches(McVariance(passes=3))
    assert strategies.get("power", {"inner": "bald", "rate": 0.3, "beta": 2}) == Power(Bald(rate=0.3), beta=2)
    assert strategies.get("spread_over_volumes", {"inner": "core_set"}) == SpreadOverVolumes(CoreSet())


def test_parameters_come_as_text_too() -> None:
    assert strategies.parse("sb_mc_variance", {"passes": "3", "rate": "0.25", "background": "false", "resample": "True"}) == {
        "passes": 3, "rate": 0.25, "background": False, "resample": True,
    }  # fmt: skip
    assert strategies.parse("power", {"inner": "bald", "passes": "4"}) == {"inner": "bald", "passes": 4}
    for name, texts, message in [
        ("bald", {"passes": "many"}, "'passes' of 'bald' must be int, got 'many'"),
        ("bald", {"passes": "1"}, "passes must be between 2 and 1000, got 1"),
        ("bald", {"steps": "1"}, "no parameter 'steps'. Known: passes, rate"),
        ("mc_variance", {"background": "maybe"}, "must be true or false, got 'maybe'"),
        ("power", {"inner": "nobody"}, "must be one of"),
    ]:
        with pytest.raises(BadInput, match=message):
            strategies.parse(name, texts)


def test_parameters_out_of_range_do_not_pass_by_the_registry_either() -> None:
    strategy = ForegroundRandom(fraction=-0.1)
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        strategy.ask(POOLS["one volume"], make_signals(strategy, POOLS["one volume"]), 1, seed=0, round_no=1)


@pytest.mark.parametrize("name", ["", "Random", "max-entropy", "a/b", "a b", "é", "new\n"])
def test_register_refuses_names_that_are_no_url_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_entries", {})
    with pytest.raises(ValueError, match=re.escape("[a-z0-9_]+")):
        strategies.register(name, Random)
    assert strategies.names() == []


def test_register_refuses_a_taken_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_entries", {})
    strategies.register("mine", Random)
    assert strategies.get("mine") == Random()
    with pytest.raises(ValueError, match="'mine' is already registered"):
        strategies.register("mine", Spread)
    assert strategies.get("mine") == Random()


# --- top k


def test_ties_are_broken_uniformly_by_the_seed() -> None:
    scores = np.array([1.0, 2.0, 1.0, 0.0, 1.0])
    second = Counter(int(top_k(scores, 2, np.random.default_rng(seed))[1]) for seed in range(3000))
    assert set(second) == {0, 2, 4}
    assert stats.chisquare(list(second.values())).pvalue > 1e-3


def test_top_k_is_a_sort() -> None:
    scores = np.random.default_rng(0).permutation(20).astype(float)
    for k in (1, 7, 20):
        np.testing.assert_array_equal(top_k(scores, k, np.random.default_rng(1)), np.argsort(-scores)[:k])


@pytest.mark.parametrize(
    ("scores", "k", "message"), [([1.0], 0, "between 1"), ([1.0], 2, "between 1"), ([1.0, np.nan], 1, "nan at index 1")]
)
def test_top_k_refuses(scores: list[float], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(np.array(scores), k, np.random.default_rng(0))


# --- random


def test_random_is_uniform_without_replacement() -> None:
    pool = make_pool([6, 6], labeled=[0], held=[11])
    rounds = 3000
    selections = [asked("random", pool, 3, round_no=n).rows.tolist() for n in range(rounds)]
    for place in range(3):
        at_place = Counter(rows[place] for rows in selections)
        assert stats.chisquare([at_place[row] for row in pool.candidates]).pvalue > 1e-3
    pairs = Counter(frozenset(rows[:2]) for rows in selections)
    assert len(pairs) == 45
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3


# --- spread


def spread_positions(pool: Pool, k: int, round_no: int = 1) -> list[int]:
    return sorted(pool.position[asked("spread", pool, k, round_no=round_no).rows].tolist())


@pytest.mark.parametrize(
    ("n", "labeled", "held", "k", "expected"),
    [
        (10, [], [], 1, [4]),
        (10, [], [], 2, [2, 7]),
        (10, [], [], 3, [1, 4, 8]),
        (10, [], [], 5, [0, 2, 4, 6, 8]),
        (9, [], [], 3, [1, 4, 7]),
        (9, [], [4], 1, [3]),
        (11, [0, 10], [], 1, [5]),
        (21, [10], [], 2, [3, 17]),
        (21, [4], [], 1, [15]),
        (31, [0, 30], [], 2, [10, 20]),
        (31, [0, 20, 30], [], 2, [7, 13]),
        (5, [0, 1, 2], [], 2, [3, 4]),
    ],
)
def test_spread_is_even_in_the_gaps(n: int, labeled: list[int], held: list[int], k: int, expected: list[int]) -> None:
    assert spread_positions(make_pool([n], labeled=labeled, held=held), k) == expected


def test_spread_covers_a_volume_nearly_as_well_as_the_best_of_all_choices() -> None:
    def farthest(n: int, known: Sequence[int]) -> int:
        return max(min(abs(slice_ - other) for other in known) for slice_ in range(n))

    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(3, 13))
        labeled = rng.choice(n, int(rng.integers(0, n // 2 + 1)), replace=False).tolist()
        k = int(rng.integers(1, min(4, n - len(labeled)) + 1))
        free = [slice_ for slice_ in range(n) if slice_ not in labeled]
        best = min(farthest(n, [*labeled, *choice]) for choice in itertools.combinations(free, k))
        assert farthest(n, [*labeled, *spread_positions(make_pool([n], labeled=labeled), k)]) <= best + 1


@pytest.mark.parametrize(
    ("lengths", "labeled", "k", "expected"),
    [
        ([5, 50, 20], [], 9, [[3, 3, 3]]),
        ([5, 50, 20], [], 10, [[3, 3, 4], [3, 4, 3], [4, 3, 3]]),
        ([2, 50], [], 10, [[2, 8]]),
        ([5, 5, 5], [0, 1, 10], 1, [[0, 1, 0]]),
        ([5, 5, 5], [0, 1, 10], 3, [[0, 2, 1]]),
        ([5, 5, 5], [0, 1, 10], 6, [[1, 3, 2]]),
    ],
)
def test_spread_evens_out_the_volumes(
    lengths: list[int], labeled: list[int], k: int, expected: list[list[int]]
) -> None:
    pool = make_pool(lengths, labeled=labeled)
    for round_no in range(5):
        rows = asked("spread", pool, k, round_no=round_no).rows
        assert np.bincount(pool.volume[rows], minlength=len(lengths)).tolist() in expected


def test_spread_takes_volumes_in_turn_in_an_order_of_the_seed() -> None:
    pool = make_pool([4] * 5)
    orders = set()
    for round_no in range(10):
        volumes = pool.volume[asked("spread", pool, 10, round_no=round_no).rows].tolist()
        assert sorted(volumes[:5]) == sorted(volumes[5:]) == list(range(5))
        orders.add(tuple(volumes[:5]))
    assert len(orders) > 1


def test_spread_does_not_depend_on_the_order_of_rows() -> None:
    pool = make_pool([13], labeled=[2, 3], held=[8])
    order = np.random.default_rng(1).permutation(13)
    assert spread_positions(permuted(pool, order), 4) == spread_positions(pool, 4)


# --- foreground_random


def foreground(pool: Pool, rows: Sequence[int]) -> dict[str, Array]:
    return {FOREGROUND_FRACTION.name: np.isin(np.arange(len(pool)), rows) * np.float32(0.1)}


@pytest.mark.parametrize(
    ("fraction", "n_foreground", "k", "sure"),
    [(0.5, 30, 10, 5), (0.33, 30, 10, 3), (1.0, 30, 10, 10), (0.0, 30, 10, 0), (0.5, 2, 10, 2), (0.5, 0, 10, 0)],
)
def test_foreground_random_draws_its_share_among_foreground(
    fraction: float, n_foreground: int, k: int, sure: int
) -> None:
    pool = make_pool([100])
    signals = foreground(pool, range(0, 3 * n_foreground, 3))
    selection = ForegroundRandom(fraction=fraction).ask(pool, signals, k, seed=0, round_no=1)
    drawn = selection.rows[["foreground" in reason for reason in selection.why]]
    assert len(drawn) == sure
    assert (signals[FOREGROUND_FRACTION.name][drawn] > 0).all()


def test_foreground_random_is_uniform_in_both_parts() -> None:
    pool = make_pool([10], labeled=[9])
    signals = foreground(pool, [0, 1, 2, 9])
    sure, rest = Counter[int](), Counter[int]()
    for round_no in range(3000):
        selection = ForegroundRandom(fraction=0.5).ask(pool, signals, 2, seed=0, round_no=round_no)
        for row, reason in zip(selection.rows.tolist(), selection.why, strict=True):
            (sure if "foreground" in reason else rest)[row] += 1
    assert stats.chisquare([sure[row] for row in (0, 1, 2)]).pvalue > 1e-3
    # The other is drawn among all that are left: a foreground row is left two times out of three.
    expected = np.array([2 / 3] * 3 + [1] * 6) * sum(rest.values()) / 8
    assert stats.chisquare([rest[row] for row in range(9)], expected).pvalue > 1e-3


# --- pixel uncertainty

HALF = 1.5 * np.log(2)
"""Entropy of (1/2, 1/4, 1/4)."""
PIXELS = {MaxEntropy: (HALF, 0.0), Margin: (-0.25, -1.0), LeastConfidence: (-0.5, -1.0)}
"""Hand-computed values of a pixel with probabilities (1/2, 1/4, 1/4) and of a certain one."""


@pytest.mark.parametrize("shape", [(1, 2), (2, 1, 1)], ids=["2D", "3D"])
@pytest.mark.parametrize(("aggregate", "pixels"), [("mean", 2), ("sum", 1)])
@pytest.mark.parametrize("kind", PIXELS)
def test_pixel_scores_by_hand(
    kind: type[PixelUncertainty], aggregate: str, pixels: int, shape: tuple[int, ...]
) -> None:
    probs = torch.tensor([[[0.25, 1.0], [0.5, 0.0], [0.25, 0.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    (need,) = kind(aggregate=aggregate).needs
    unsure, sure = PIXELS[kind]
    values = need.reduce(probs.reshape(2, 3, *shape)).numpy()
    np.testing.assert_allclose(values, [(unsure + sure) / pixels, 2 * sure / pixels], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)], ids=["2D", "3D"])
@pytest.mark.parametrize("kind", PIXELS)
def test_pixel_scores_against_a_plain_loop(kind: type[PixelUncertainty], shape: tuple[int, ...]) -> None:
    probs = torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    slow = {
        MaxEntropy: lambda p: -sum(x * np.log(x) for x in p),
        Margin: lambda p: sorted(p)[-2] - sorted(p)[-1],
        LeastConfidence: lambda p: -max(p),
    }[kind]
    expected = [
        np.mean([slow([float(x) for x in item[(slice(None), *index)]]) for index in np.ndindex(shape)])
        for item in probs.numpy()
    ]
    np.testing.assert_allclose(kind().needs[0].reduce(probs).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", PIXELS)
def test_saturated_probabilities_are_no_nan(kind: type[PixelUncertainty]) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 1e4
    value = kind().needs[0].reduce(logits.softmax(1))
    assert value.tolist() == [PIXELS[kind][1]]


def test_the_foreground_signal_is_the_share_of_foreground_pixels() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.2, 0.5], [0.3, 0.4, 0.2, 0.1], [0.1, 0.3, 0.6, 0.4]]).reshape(1, 3, 2, 2)
    assert FOREGROUND_FRACTION.reduce(probs).tolist() == [0.5]


def test_signals_of_different_meaning_have_different_names() -> None:
    needs = [kind(aggregate=how).needs[0].name for kind in PIXELS for how in ("mean", "sum")]
    assert len(set(needs)) == len(needs)


@pytest.mark.parametrize("name", ["max_entropy", "margin", "least_confidence"])
def test_the_highest_scores_are_asked_for_and_say_their_place(name: str) -> None:
    pool, strategy = make_pool([200], labeled=range(100)), strategies.get(name)
    signals = {need.name: np.arange(200, dtype=np.float32) for need in strategy.needs}
    selection = strategy.ask(pool, signals, 3, seed=0, round_no=1)
    assert selection.rows.tolist() == selection.scores.tolist() == [199, 198, 197]
    assert [re.findall(r"top \d+ % of \d+", reason) for reason in selection.why] == [
        ["top 1 % of 100"],
        ["top 2 % of 100"],
        ["top 3 % of 100"],
    ]


# --- stochastic batches


@pytest.mark.parametrize("k", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("resample", [False, True])
def test_stochastic_batches_against_brute_force(resample: bool, k: int) -> None:
    pool = make_pool([8, 6], labeled=[3], held=[9])
    strategy = StochasticBatches(MaxEntropy(), resample=resample)
    signals = make_signals(strategy, pool)
    (score,) = signals.values()
    m = len(pool.candidates)
    for round_no in range(20):
        rng = np.random.default_rng([11, round_no])
        if resample:
            draws = [rng.choice(m, k, replace=False) for _ in range(m // k)]
        else:
            shuffled = rng.permutation(m)
            draws = [shuffled[start : start + k] for start in range(0, m - k + 1, k)]
        batches = [sorted(pool.candidates[draw].tolist(), key=lambda row: -score[row]) for draw in draws]
        best = max(batches, key=lambda rows: np.mean(score[rows]))
        selection = strategy.ask(pool, signals, k, seed=11, round_no=round_no)
        assert selection.rows.tolist() == best
        np.testing.assert_array_equal(selection.scores, score[best])
        assert f"of {m // k} random batches" in selection.why[0]


def test_resampled_batches_are_not_a_partition() -> None:
    pool = make_pool([8])
    signals = {MaxEntropy().needs[0].name: np.array([0, 0, 0, 0, 0, 0, 1, 1], np.float32)}
    won = [
        [
            float(StochasticBatches(MaxEntropy(), resample).ask(pool, signals, 2, seed=0, round_no=n).scores.mean())
            for n in range(300)
        ]
        for resample in (False, True)
    ]
    # Four disjoint pairs always hold both high rows somewhere; four independent pairs may hold neither.
    assert set(won[0]) == {0.5, 1.0}
    assert set(won[1]) == {0.0, 0.5, 1.0}
