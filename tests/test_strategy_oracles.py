"""Each strategy from the question to the answer, beside what its definition says, worked out by hand or by plain loops."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import strategies
from loop.pool import ItemTable, Pool
from loop.signals import PoolMean, Signal
from loop.views import (
    Augmentations,
    Augmented,
    Difficulty,
    Dropout,
    Ensemble,
    Features,
    Gradients,
    Head,
    Passes,
    PredictedLoss,
    Probs,
    View,
    Votes,
)
from strategies import Selection, Strategy, _typicality

pytestmark = pytest.mark.usefixtures("short_graph_training")

Array = np.ndarray
Values = Mapping[str, Array]
"""Of all rows, by the beginning of a signal's name."""


def make_pool(
    volume: Sequence[int], *, labeled: Sequence[int] = (), held: Sequence[int] = (), voxels: Sequence[int] = ()
) -> Pool:
    """Rows of these volumes, in this order."""
    numbers = np.asarray(volume, np.int64)
    position = np.array([list(volume[:row]).count(number) for row, number in enumerate(volume)], np.int64)
    marks = [np.isin(np.arange(len(numbers)), rows) for rows in (labeled, held)]
    items = ItemTable([f"image_{n}" for n in range(int(numbers.max()) + 1)], numbers, position)
    return Pool(items, *marks, numbers, numbers, position, np.asarray(voxels, np.int64))


def found(need: Signal | PoolMean, values: Values) -> Array:
    """What a sweep would find, where the values are what is there to be found."""
    if isinstance(need, PoolMean):
        return need.reduce(torch.tensor(values["gradients"][need.rows])).double().numpy().mean(0)
    value = next(array for begin, array in values.items() if need.name.startswith(begin))
    if isinstance(need.view, Gradients):
        value = value[:, list(need.view.indices)] if need.view.indices is not None else value[:, : need.view.keep]
    return value.astype(np.float32)


def ask(strategy: Strategy, pool: Pool, values: Values, k: int, *, seed: int = 0, round_no: int = 1) -> Selection:
    """The answer, with everything that was wanted on the way."""
    signals: dict[str, Array] = {}
    while wanted := strategy.wants(pool, signals, k, seed=seed, round_no=round_no):
        signals |= {need.name: found(need, values) for need in wanted}
    return strategy.ask(pool, signals, k, seed=seed, round_no=round_no)


def likely(counts: Mapping[Any, int], chances: Mapping[Any, float]) -> None:
    """Such counts are no surprise, and nothing impossible happened."""
    assert {key for key, count in counts.items() if count} <= {key for key, chance in chances.items() if chance > 0}
    keys = [key for key, chance in chances.items() if chance > 0]
    total = sum(counts.values())
    expected = np.array([chances[key] for key in keys])
    assert expected.sum() == pytest.approx(1)
    if len(keys) > 1:
        assert stats.chisquare([counts.get(key, 0) for key in keys], expected * total).pvalue > 1e-3


def smooth(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


VOLUMES = [0] * 9 + [1] * 6 + [2] * 4 + [3]
SOME = make_pool(VOLUMES, labeled=[0, 10, 19], held=[1, 2, 16])
FRESH = make_pool(VOLUMES, held=[4])


# --- one score an item


def stack_of(count: int, items: int = 12, classes: int = 3, pixels: int = 6, seed: int = 0) -> Array:
    """(count, items, classes, pixels) probabilities, some of them 0 and 1; the later items are the surer ones."""
    logits = 3 * np.random.default_rng(seed).standard_normal((count, items, classes, pixels))
    logits *= np.linspace(0.1, 3, items)[:, None, None]
    logits[:, 3, 1] += 2000
    weights = np.exp(logits - logits.max(2, keepdims=True))
    return weights / weights.sum(2, keepdims=True)


def entropy(p: Array) -> float:
    return -sum(float(x) * float(np.log(x)) for x in p if x > 0)


def slow_maps(p: Array, statistic: Callable[[Array], float]) -> list[float]:
    """Mean over the pixels of a statistic of the (count, classes) predictions of a pixel, for each item."""
    return [
        float(np.mean([statistic(p[:, item, :, pixel]) for pixel in range(p.shape[3])])) for item in range(p.shape[1])
    ]


def modal_count(votes: Array) -> int:
    return max(Counter(votes.argmax(1).tolist()).values())


def jensen(p: Array) -> float:
    return entropy(p.mean(0)) - float(np.mean([entropy(one) for one in p]))


def as_view(view: View, p: Array) -> Any:
    """What the engine hands on for the predictions (count, items, classes, pixels)."""
    tensor = torch.tensor
    mean, apart = tensor(p.mean(0)), tensor(np.array([[[entropy(q) for q in one.T] for one in run] for run in p]))
    if isinstance(view, Dropout):
        return Passes(mean, tensor(((p - p.mean(0)) ** 2).mean(0)), apart.mean(0))
    if isinstance(view, Augmented):
        return Augmentations(mean, apart.mean(0), torch.ones_like(apart[0], dtype=torch.bool))
    share = [[modal_count(p[:, item, :, pixel]) / len(p) for pixel in range(p.shape[3])] for item in range(p.shape[1])]
    return Votes(mean, tensor(share))


SCORES: list[tuple[str, dict[str, Any], View, Callable[[Array], float]]] = [
    ("mc_variance", {}, Dropout(17, 0.5), lambda p: float(np.mean([np.mean((c - c.mean()) ** 2) for c in p.T]))),
    ("mc_variance", {"passes": 4, "rate": 0.2}, Dropout(4, 0.2), lambda p: float(np.mean(p.var(0)))),
    ("mc_variance", {"background": False}, Dropout(17, 0.5), lambda p: float(np.mean(p.var(0)[1:]))),
    ("mean_std", {}, Dropout(10, 0.1), lambda p: float(np.mean([np.mean((c - c.mean()) ** 2) ** 0.5 for c in p.T]))),
    ("mean_std", {"passes": 3, "rate": 0.5}, Dropout(3, 0.5), lambda p: float(np.mean(p.std(0)))),
    ("bald", {}, Dropout(10, 0.1), jensen),
    ("bald", {"passes": 5}, Dropout(5, 0.1), jensen),
    ("tta", {}, Augmented(8, 10.0, 0.01), jensen),
    ("tta", {"views": 4, "rotation": 5.0, "noise": 0.1}, Augmented(4, 5.0, 0.1), jensen),
    ("variance_ratio", {}, Ensemble(5), lambda p: 1 - modal_count(p) / len(p)),
    ("variance_ratio", {"members": 3}, Ensemble(3), lambda p: 1 - modal_count(p) / len(p)),
    ("ensemble_entropy", {}, Ensemble(5), lambda p: entropy(p.mean(0))),
    ("ensemble_entropy", {"members": 3}, Ensemble(3), lambda p: entropy(p.mean(0))),
]


def count_of(view: View) -> int:
    if isinstance(view, Dropout):
        return view.passes
    assert isinstance(view, Augmented | Ensemble)
    return view.count if isinstance(view, Augmented) else view.members


@pytest.mark.parametrize(("name", "parameters", "view", "statistic"), SCORES)
def test_the_highest_of_the_defined_score_are_asked_for(
    name: str, parameters: dict[str, Any], view: View, statistic: Callable[[Array], float]
) -> None:
    strategy = strategies.get(name, parameters)
    (need,) = strategy.needs
    assert need.view == view
    p = stack_of(count_of(view))
    expected = np.array(slow_maps(p, statistic))
    values = need.reduce(as_view(view, p)).numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-9)
    pool = make_pool([0] * 5 + [1] * 7, labeled=[0], held=[7])
    candidates = [row for row in range(12) if row not in (0, 7)]
    for k in (1, 4, 10, 15):
        selection = ask(strategy, pool, {need.name: np.where(pool.held, np.nan, values)}, k)
        np.testing.assert_allclose(
            selection.scores, sorted(expected[candidates], reverse=True)[:k], rtol=1e-5, atol=1e-9
        )
        np.testing.assert_allclose(selection.scores, expected[selection.rows], rtol=1e-5, atol=1e-9)


def test_parameters_make_another_signal() -> None:
    changes: dict[str, list[dict[str, Any]]] = {
        "mc_variance": [{"passes": 3}, {"rate": 0.1}, {"background": False}],
        "mean_std": [{"passes": 3}, {"rate": 0.2}],
        "bald": [{"passes": 3}, {"rate": 0.2}],
        "tta": [{"views": 3}, {"rotation": 20.0}, {"noise": 0.1}],
        "variance_ratio": [{"members": 3}],
        "ensemble_entropy": [{"members": 3}],
        "suggestive_annotation": [{"passes": 3}, {"rate": 0.2}],
        "usim_c": [{"passes": 3}, {"rate": 0.2}, {"size": 5}],
        "usim_f": [{"passes": 3}, {"rate": 0.2}],
        "deal": [{"bins": 5}],
    }
    for name, alternatives in changes.items():
        needs = [tuple(need.name for need in strategies.get(name, chosen).needs) for chosen in [{}, *alternatives]]
        assert len(set(needs)) == len(needs)


@pytest.mark.parametrize("bins", [2, 10, 17])
def test_deal_asks_for_the_highest_entropy_of_the_difficulty_histogram(bins: int) -> None:
    strategy = strategies.get("deal", {"bins": bins} if bins != 10 else {})
    (need,) = strategy.needs
    assert (need.view, strategy.needs_heads) == (Difficulty(), {"deal"})
    widths = np.linspace(0.01, 1, 12)[:, None, None]
    maps = (np.random.default_rng(0).random((12, 5, 7)) * widths).astype(np.float32)
    maps[2], maps[3] = 0, 1
    expected = []
    for difficulty in maps:
        counts = Counter(min(bins - 1, int(value * np.float32(bins))) for value in difficulty.ravel())
        expected.append(-sum(n / 35 * float(np.log(n / 35)) for n in counts.values()))
    values = need.reduce(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert (values[2], values[3]) == (0, 0)
    selection = ask(strategy, make_pool([0] * 12, labeled=[11]), {need.name: values}, 4)
    np.testing.assert_allclose(selection.scores, sorted(expected[:11], reverse=True)[:4], rtol=1e-5)
    np.testing.assert_allclose(selection.scores, np.array(expected)[selection.rows], rtol=1e-5)
    volume = need.reduce(torch.from_numpy(maps[None, :, :, :])).numpy()
    everywhere = Counter(min(bins - 1, int(value * np.float32(bins))) for value in maps.ravel())
    shares = [n / maps.size for n in everywhere.values()]
    np.testing.assert_allclose(volume, [-sum(p * np.log(p) for p in shares)], rtol=1e-5)


def test_learning_loss_asks_for_the_highest_predicted_loss_as_it_is() -> None:
    strategy = strategies.get("learning_loss")
    (need,) = strategy.needs
    assert (need.view, strategy.needs_heads) == (PredictedLoss(), {"learning_loss"})
    predicted = smooth(12)
    np.testing.assert_array_equal(need.reduce(torch.from_numpy(predicted)).numpy(), predicted)
    selection = ask(strategy, make_pool([0] * 12, labeled=[3]), {need.name: predicted}, 5)
    candidates = [row for row in np.argsort(predicted)[::-1] if row != 3]
    assert selection.rows.tolist() == candidates[:5]
    wrapped = strategies.get("sb_learning_loss")
    assert (wrapped.needs, wrapped.needs_heads) == (strategy.needs, {"learning_loss"})


def test_pixels_outside_a_view_do_not_count() -> None:
    p = stack_of(8)
    views = as_view(Augmented(8), p)
    valid = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    views = Augmentations(views.mean, views.expected_entropy, valid)
    expected = [
        np.mean([jensen(p[:, item, :, pixel]) for pixel in range(6) if valid[item, pixel]]) if valid[item].any() else 0
        for item in range(12)
    ]
    (need,) = strategies.get("tta").needs
    np.testing.assert_allclose(need.reduce(views).numpy(), expected, rtol=1e-5, atol=1e-9)


# --- stochastic batches

FAMILY = {
    "sb_max_entropy": (Probs(), {"aggregate": "sum"}),
    "sb_mc_variance": (Dropout(17, 0.5), {"background": False}),
    "sb_tta": (Augmented(8, 10.0, 0.01), {"views": 3}),
    "sb_ensemble_entropy": (Ensemble(5), {"members": 3}),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_batch_with_the_best_mean_wins(name: str) -> None:
    view, parameters = FAMILY[name]
    for chosen in ({}, parameters):
        strategy = strategies.get(name, chosen)
        (need,) = strategy.needs
        assert (need.view == view) == (not chosen or name in ("sb_max_entropy", "sb_mc_variance"))
        values = np.random.default_rng(1).random(len(SOME)).astype(np.float32)
        values[SOME.held] = np.nan
        for k, round_no in itertools.product((1, 3, 4, 13, 14, 30), range(5)):
            rows = SOME.candidates.tolist()
            size = min(k, len(rows))
            shuffled = [rows[place] for place in np.random.default_rng([7, round_no]).permutation(len(rows))]
            batches = [shuffled[start : start + size] for start in range(0, len(rows) - size + 1, size)]
            best = max(batches, key=lambda batch: sum(float(values[row]) for row in batch))
            selection = ask(strategy, SOME, {need.name: values}, k, seed=7, round_no=round_no)
            assert selection.rows.tolist() == sorted(best, key=lambda row: -values[row])


# --- k-centre


def distance(a: Array, b: Array) -> float:
    return float(np.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))))


def slow_core_set(features: Array, candidates: Sequence[int], centres: Sequence[int], k: int) -> list[int]:
    """Furthest first, the lowest row of equals; `centres` are not empty."""
    done, left = list(centres), sorted(candidates)
    picks: list[int] = []
    for _ in range(k):
        picks.append(max(left, key=lambda row: (min(distance(features[row], features[c]) for c in done), -row)))
        done.append(picks[-1])
        left.remove(picks[-1])
    return picks


FEATURES = {
    "distinct": smooth(20, 4),
    "ties": np.random.default_rng(0).integers(0, 3, (20, 2)).astype(np.float32),
    "duplicates": np.repeat(smooth(4, 3), 5, axis=0),
    "all the same": np.ones((20, 3), np.float32),
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_core_set_covers_from_the_labelled(features: Array) -> None:
    strategy = strategies.get("core_set")
    assert [need.view for need in strategy.needs] == [Features()]
    holes = np.where(SOME.held[:, None], np.nan, features)
    for k in (1, 4, 14):
        selection = ask(strategy, SOME, {"bottleneck": holes}, k)
        assert selection.rows.tolist() == slow_core_set(features, SOME.candidates, [0, 10, 19], k)
        done = [0, 10, 19]
        for row, score in zip(selection.rows.tolist(), selection.scores, strict=True):
            assert score == pytest.approx(min(distance(features[row], features[c]) for c in done), rel=1e-5)
            done.append(row)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_core_set_without_labels_begins_anywhere(features: Array) -> None:
    firsts = Counter[int]()
    for round_no in range(200):
        rows = ask(strategies.get("core_set"), FRESH, {"bottleneck": features}, 5, round_no=round_no).rows.tolist()
        assert rows[1:] == slow_core_set(features, sorted({*FRESH.candidates} - {rows[0]}), rows[:1], 4)
        firsts[rows[0]] += 1
    likely(firsts, dict.fromkeys(FRESH.candidates.tolist(), 1 / 19))


# --- suggestive annotation


def cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
    return float((a * b).sum() / length) if length else 0.0


def is_cover(features: Array, everyone: Sequence[int], allowed: Sequence[int], picks: Sequence[int]) -> bool:
    """Whether each pick is the allowed row with the largest sum_i max(cos(i, j), best_i), up to rounding."""
    like = {(i, j): cosine(features[i], features[j]) for i in everyone for j in allowed}
    best = dict.fromkeys(everyone, -np.inf)
    for place, pick in enumerate(picks):
        sums = {j: sum(max(like[i, j], best[i]) for i in everyone) for j in allowed if j not in picks[:place]}
        if sums[pick] < max(sums.values()) - 1e-4:
            return False
        best = {i: max(like[i, pick], best[i]) for i in everyone}
    return True


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize(("k", "n_unc", "looked_at"), [(1, 0, 2), (3, 0, 6), (3, 10, 10), (5, 2, 5), (9, 0, 14)])
def test_suggestive_annotation_covers_all_by_the_uncertain(features: Array, k: int, n_unc: int, looked_at: int) -> None:
    strategy = strategies.get("suggestive_annotation", {"n_unc": n_unc})
    assert [need.view for need in strategy.needs] == [Dropout(17, 0.5), Features()]
    variance = np.random.default_rng(3).random(20)
    # The labelled ones are the most uncertain and stand for most; neither may count.
    variance[SOME.labeled] = 2
    everyone = SOME.candidates.tolist()
    allowed = sorted(everyone, key=lambda row: -variance[row])[:looked_at]
    holes = {"mc_variance_T17_p0.5": np.where(SOME.held, np.nan, variance)}
    selection = ask(strategy, SOME, holes | {"bottleneck": np.where(SOME.held[:, None], np.nan, features)}, k)
    assert set(selection.rows.tolist()) <= set(allowed)
    assert is_cover(features, everyone, allowed, selection.rows.tolist())
    assert not is_cover(smooth(20, 4, seed=9), everyone, everyone, everyone[:2])


def test_suggestive_annotation_by_hand() -> None:
    # Three of one kind, two of another, one alone: the most uncertain is alone, and is asked for last.
    features = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    values = {"bottleneck": features, "mc_variance": np.array([0.1, 0.5, 0.2, 0.6, 0.1, 0.9])}
    pool = make_pool([0] * 6)
    assert ask(strategies.get("suggestive_annotation"), pool, values, 1).rows.tolist() == [3]
    wider = strategies.get("suggestive_annotation", {"n_unc": 3})
    assert ask(wider, pool, values, 3).rows.tolist() == [1, 3, 5]
    np.testing.assert_allclose(ask(wider, pool, values, 3).scores, [3, 2, 1], rtol=1e-6)


# --- typiclust


def slow_typiclust(features: Array, clusters: Mapping[int, int], labeled: Sequence[int], k: int) -> list[int]:
    """`clusters` of labelled and candidates; a pass takes the most typical of each, those with few labels first."""
    members = {c: [row for row in sorted(clusters) if clusters[row] == c] for c in set(clusters.values())}
    order = sorted(members, key=lambda c: (sum(r in labeled for r in members[c]), -len(members[c]), members[c][0]))
    free = {c: [row for row in members[c] if row not in labeled] for c in order}
    picks: list[int] = []
    for big in (True, False):
        while any(free[c] and (len(members[c]) > 5) == big for c in order) and len(picks) < k:
            for c in order:
                if free[c] and (len(members[c]) > 5) == big and len(picks) < k:
                    near = min(20, len(free[c]) // 2)
                    typical = {
                        row: -np.mean(sorted(distance(features[row], features[o]) for o in free[c] if o != row)[:near])
                        if near
                        else 0.0
                        for row in free[c]
                    }
                    picks.append(max(free[c], key=lambda row: (typical[row], -row)))
                    free[c].remove(picks[-1])
    return picks


BLOBS = [30, 12, 9, 20, 8]


@pytest.mark.parametrize(("labeled", "k"), [([], 5), ([0, 31], 3), ([0, 31, 45, 55], 1), ([30, 31, 32], 2)])
def test_typiclust_takes_the_middle_of_what_has_no_label(labeled: list[int], k: int) -> None:
    blob = np.repeat(np.arange(5), BLOBS)
    features = smooth(len(blob), 3) + 1000 * np.eye(5, 3, dtype=np.float32)[blob] * (blob[:, None] + 1)
    features[blob == 3] -= 5000
    features[blob == 4] += 9000
    pool = make_pool(blob.tolist(), labeled=labeled, held=[1, 33])
    strategy = strategies.get("typiclust")
    assert [need.view for need in strategy.needs] == [Features()]
    holes = np.where(pool.held[:, None], np.nan, features)
    selection = ask(strategy, pool, {"bottleneck": holes}, k)
    clusters = {row: int(blob[row]) for row in range(len(blob)) if row not in (1, 33)}
    assert selection.rows.tolist() == slow_typiclust(features, clusters, labeled, k)
    covered = {int(blob[row]) for row in labeled}
    assert not covered & {int(blob[row]) for row in selection.rows}


@pytest.mark.parametrize("kind", ["distinct", "duplicates"])
@pytest.mark.parametrize(("labeled", "k"), [([], 1), ([3, 50], 6), (list(range(20)), 30), ([], 90)])
def test_typiclust_of_any_clusters(kind: str, labeled: list[int], k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = smooth(90, 3) if kind == "distinct" else np.repeat(smooth(9, 3), 10, axis=0)
    pool = make_pool([0] * 45 + [1] * 45, labeled=labeled, held=[44, 77] if k < 90 else [])
    seen: list[tuple[int, Array]] = []
    real = _typicality._clusters

    def spy(rows: Array, count: int, rng: np.random.Generator) -> Array:
        seen.append((count, real(rows, count, rng)))
        return seen[0][1]

    monkeypatch.setattr(_typicality, "_clusters", spy)
    selection = ask(strategies.get("typiclust"), pool, {"bottleneck": features}, k)
    ((count, clusters),) = seen
    assert count == len(labeled) + k
    by_row = dict(zip(pool.known.tolist(), clusters.tolist(), strict=True))
    assert selection.rows.tolist() == slow_typiclust(features, by_row, labeled, k)


def test_typiclust_has_at_most_500_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def spy(rows: Array, count: int, rng: np.random.Generator) -> Array:
        counts.append(count)
        return np.arange(len(rows)) // 2

    monkeypatch.setattr(_typicality, "_clusters", spy)
    pool = make_pool([0] * 700, labeled=range(480))
    ask(strategies.get("typiclust"), pool, {"bottleneck": smooth(700, 2)}, 20)
    ask(strategies.get("typiclust"), pool, {"bottleneck": smooth(700, 2)}, 21)
    assert counts == [500, 500]
    ask(strategies.get("typiclust"), pool, {"bottleneck": smooth(700, 2)}, 19)
    assert counts[-1] == 499


# --- k-means++ on gradients


def seedings(x: Array, k: int, first: str, trials: int) -> dict[tuple[int, ...], float]:
    """The chance of each sequence of k picks, by going through all draws."""
    n = len(x)
    square = [[distance(a, b) ** 2 for b in x] for a in x]
    lengths = [distance(a, np.zeros_like(a)) for a in x]
    chances = (
        {(i,): 1 / n for i in range(n)}
        if first == "random"
        else {(max(range(n), key=lambda i: (lengths[i], -i)),): 1.0}
    )
    for _ in range(k - 1):
        longer = Counter[tuple[int, ...]]()
        for picks, chance in chances.items():
            nearest = [min(square[i][j] for j in picks) for i in range(n)]
            weights = nearest if sum(nearest) else [float(i not in picks) for i in range(n)]
            p = [weight / sum(weights) for weight in weights]
            for draws in itertools.product([i for i in range(n) if p[i]], repeat=trials):
                left = [sum(min(nearest[i], square[i][draw]) for i in range(n)) for draw in draws]
                winner = draws[min(range(trials), key=lambda t: (round(left[t], 9), t))]
                longer[(*picks, winner)] += chance * float(np.prod([p[draw] for draw in draws]))  # type: ignore[assignment]
        chances = dict(longer)
    return chances


GRADIENTS = {
    "distinct": np.array([[0, 0], [3, 0], [0, 2], [1, 1], [-2, 1]], np.float32),
    "duplicates": np.array([[2, 0], [2, 0], [0, 1], [0, 1], [0, 1]], np.float32),
    "all the same": np.ones((5, 2), np.float32),
}


@pytest.mark.parametrize("x", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "signal", "first", "trials"),
    [
        ("alges_img", "alges_image", "random", lambda k: 2 + int(np.log(k))),
        ("alges_sem", "alges_semantic", "random", lambda k: 2 + int(np.log(k))),
        ("badge", "alges_image", "max_norm", lambda k: 1),
    ],
)
def test_gradients_are_seeded_like_k_means(
    name: str, signal: str, first: str, trials: Callable[[int], int], k: int, x: Array
) -> None:
    strategy = strategies.get(name)
    assert [(need.name, need.view) for need in strategy.needs] == [(signal, Head())]
    pool = make_pool([0, 0, 0, 1, 1, 1, 2], labeled=[2], held=[5])
    rows = pool.candidates
    values = np.full((7, 2), np.nan)
    values[rows], values[2] = x, 1e3
    rounds = 600
    counts = Counter(tuple(ask(strategy, pool, {signal: values}, k, round_no=n).rows.tolist()) for n in range(rounds))
    chances = seedings(x, k, first, trials(k))
    likely(counts, {tuple(int(rows[i]) for i in picks): chance for picks, chance in chances.items()})


@pytest.mark.parametrize("name", ["alges_img", "alges_sem", "badge"])
def test_first_and_trials_can_be_set(name: str) -> None:
    signal = "alges_semantic" if name == "alges_sem" else "alges_image"
    x = GRADIENTS["distinct"]
    for first, trials in (("random", 1), ("max_norm", 2)):
        strategy = strategies.get(name, {"first": first, "local_trials": trials})
        counts = Counter(
            tuple(ask(strategy, make_pool([0] * 5), {signal: x}, 2, round_no=n).rows.tolist()) for n in range(600)
        )
        likely(counts, seedings(x, 2, first, trials))


@pytest.mark.parametrize("name", ["alges_img", "alges_sem", "badge"])
def test_every_distinct_gradient_comes_before_a_repeated_one(name: str) -> None:
    x = np.repeat(smooth(6, 4), 3, axis=0)
    for round_no in range(20):
        rows = ask(strategies.get(name), make_pool([0] * 18), {"alges": x}, 30, round_no=round_no).rows
        assert len(set(rows // 3)) == len(set(rows[:6] // 3)) == 6
        assert sorted(rows) == list(range(18))


# --- submodular mutual information


def slow_uncertainty(variance: Array, voxels: Sequence[int]) -> Array:
    counts = list(voxels) or [1] * variance.shape[1]
    weights = [0.0, *(1 / max(count, 1) for count in counts[1:])]
    return np.array([sum(w * float(v) for w, v in zip(weights, row, strict=True)) for row in variance])


def slow_query(uncertainty: Array, size: int, *, seed: int, round_no: int) -> Array:
    """The query set, as the first draw of the question's generator."""
    total = uncertainty.sum()
    p = uncertainty / total if total else None
    return np.random.default_rng([seed, round_no]).choice(len(uncertainty), size, p=p)


def information(kernel: Array, chosen: Sequence[int], eta: float = 1.0) -> float:
    """sum_i max_j S_ij + eta sum_j max_i S_ij over the chosen j."""
    if not chosen:
        return 0.0
    covered = sum(max(kernel[j, i] for j in chosen) for i in range(kernel.shape[1]))
    return float(covered + eta * sum(max(kernel[j]) for j in chosen))


def check_informative(kernel: Array, picks: Sequence[int], gains: Array, eta: float = 1.0) -> None:
    """Each pick adds most to the information, and the gains are what they add, up to rounding."""
    close = 1e-5 * (np.abs(kernel).max() * kernel.shape[1] * (1 + eta))
    for place, pick in enumerate(picks):
        before = information(kernel, picks[:place], eta)
        added = {
            j: information(kernel, [*picks[:place], j], eta) - before
            for j in range(len(kernel))
            if j not in picks[:place]
        }
        assert added[pick] >= max(added.values()) - close
        assert gains[place] == pytest.approx(added[pick], abs=close)


def cosines(gradients: Array, query: Array) -> Array:
    return np.array([[cosine(row, gradients[q]) for q in query] for row in gradients])


VOXELS = {"counted": [9000, 40, 10], "a class nobody annotated": [500, 0, 10], "not counted": []}


@pytest.mark.parametrize("voxels", VOXELS.values(), ids=VOXELS)
@pytest.mark.parametrize("zero", [False, True], ids=["uncertain", "certain"])
@pytest.mark.parametrize("k", [1, 2, 9, 14, 30])
def test_usim_c_is_the_definition(voxels: list[int], zero: bool, k: int) -> None:
    pool = make_pool(VOLUMES, labeled=[0, 10, 19], held=[1, 2, 16], voxels=voxels)
    variance = np.random.default_rng(5).random((20, 3)).astype(np.float32) * (not zero)
    gradients = smooth(20, 6, seed=2)
    gradients[[5, 6, 7]] = gradients[8]
    gradients[11] = 0
    holes = pool.held[:, None]
    values = {"mc_class": np.where(holes, np.nan, variance), "gradients": np.where(holes, np.nan, gradients)}
    strategy = strategies.get("usim_c")
    assert [need.view for need in strategy.needs] == [Dropout(10, 0.1), Gradients("bottleneck", keep=10_000)]
    rows = pool.candidates
    uncertainty = slow_uncertainty(variance[rows], voxels)
    for round_no, eta, signed in [(1, 1.0, False), (2, 0.0, False), (3, 2.5, True)]:
        chosen = strategies.get("usim_c", {"eta": eta, "signed": signed})
        # So few have no elbow: 5 budgets, or all.
        size = min(5 * k, 14)
        query = slow_query(uncertainty, size, seed=4, round_no=round_no)
        kernel = cosines(gradients[rows], query)
        selection = ask(chosen, pool, values, k, seed=4, round_no=round_no)
        places = np.searchsorted(rows, selection.rows).tolist()
        check_informative(kernel if signed else np.maximum(kernel, 0), places, selection.scores, eta)


@pytest.mark.parametrize(("k", "size"), [(1, 16), (3, 16), (4, 20), (11, 55), (12, 60), (13, 60)])
def test_the_query_set_ends_at_the_elbow(k: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # exp(-i / 8) over 60 items: the distance to the chord is largest where exp(-i / 8) / 8 = 1 / 59, at i = 15.98.
    pool = make_pool([0] * 60)
    variance = np.zeros((60, 2), np.float32)
    variance[np.random.default_rng(0).permutation(60), 1] = np.exp(-np.arange(60) / 8)
    chances = dict(enumerate((variance[:, 1] / variance[:, 1].astype(float).sum()).astype(float)))
    drawn = Counter[int]()
    kind = type(strategies.get("usim_c"))
    real = kind.query_set

    def spy(self: Any, *question: Any) -> Array:
        query = real(self, *question)
        assert len(query) == size
        drawn.update(query.tolist())
        return query

    monkeypatch.setattr(kind, "query_set", spy)
    values = {"mc_class": variance, "gradients": smooth(60, 3)}
    for round_no in range(40):
        ask(strategies.get("usim_c"), pool, values, k, round_no=round_no)
    # Those drawn rarely are counted together.
    rare = [i for i, chance in chances.items() if chance < 0.01]
    counts = Counter({i: n for i, n in drawn.items() if i not in rare}) + Counter({-1: sum(drawn[i] for i in rare)})
    likely(counts, {i: p for i, p in chances.items() if i not in rare} | {-1: sum(chances[i] for i in rare)})


def test_a_rare_class_outweighs_a_common_one() -> None:
    # Item 0 is unstable where the organ is, item 1 a little where the lesion is; background does not count.
    variance = np.array([[0.0, 0.2, 0.0], [0.0, 0.0, 0.01], [0.9, 0.0, 0.0]], np.float32)
    values = {"mc_class": variance, "gradients": np.eye(3, dtype=np.float32)}
    for voxels, expected in (([10**6, 10**5, 10], 1), ([10**6, 10, 10], 0), ([], 0), ([10**6, 10**5, 0], 1)):
        pool = make_pool([0, 1, 2], voxels=voxels)
        picks = Counter(int(ask(strategies.get("usim_c"), pool, values, 1, round_no=n).rows[0]) for n in range(50))
        assert 2 not in picks
        assert picks.most_common(1)[0][0] == expected


@pytest.mark.parametrize("damping", [0.01, 0.5, 0.0])
@pytest.mark.parametrize(("k", "size", "fisher_items"), [(1, 10_000, 200), (2, 3, 200), (3, 5, 4), (14, 10_000, 1)])
def test_usim_f_is_the_definition(k: int, size: int, fisher_items: int, damping: float) -> None:
    pool = make_pool(VOLUMES, labeled=[0, 10, 19], held=[1, 2, 16], voxels=[100, 5, 50])
    gradients = smooth(20, 12, seed=2) * np.logspace(0, -2, 12, dtype=np.float32)
    gradients[:, [3, 8]] = 0
    gradients[[5, 6]] = gradients[8]
    variance = np.random.default_rng(5).random((20, 3)).astype(np.float32)
    parameters = {"size": size, "fisher_items": fisher_items, "damping": damping}
    strategy = strategies.get("usim_f", parameters)
    rows, question = pool.candidates, {"seed": 3, "round_no": 2}
    query = slow_query(slow_uncertainty(variance[rows], pool.voxels.tolist()), min(5 * k, 14), **question)

    (first,) = strategy.wants(pool, {}, k, **question)
    assert first.view == Dropout(10, 0.1)
    signals = {first.name: found(first, {"mc_class": variance})}
    (second,) = strategy.wants(pool, signals, k, **question)
    assert isinstance(second, PoolMean)
    assert second.view == Gradients("decoder")
    assert len(second.rows) == min(fisher_items, len(query))
    assert not Counter(second.rows.tolist()) - Counter(rows[query].tolist())
    signals[second.name] = found(second, {"gradients": gradients})
    fisher = np.array([np.mean([float(gradients[row, i]) ** 2 for row in second.rows]) for i in range(12)])
    np.testing.assert_allclose(signals[second.name], fisher, rtol=1e-5)
    (third,) = strategy.wants(pool, signals, k, **question)
    assert isinstance(third.view, Gradients)
    drawn = third.view.indices
    assert third.view.layer == "decoder"
    assert drawn is not None
    assert len(set(drawn)) == len(drawn) == min(size, 10)
    assert not {3, 8} & set(drawn)
    signals[third.name] = found(third, {"gradients": gradients})
    assert strategy.wants(pool, signals, k, **question) == ()

    selection = strategy.ask(pool, signals, k, **question)
    kept = {i: fisher[i] for i in drawn}
    level = damping * sum(kept.values()) / len(kept)
    kernel = np.array(
        [
            [
                sum(float(gradients[row, i]) * float(gradients[rows[q], i]) / (kept[i] + level) for i in drawn)
                for q in query
            ]
            for row in rows
        ]
    )
    check_informative(np.maximum(kernel, 0), np.searchsorted(rows, selection.rows).tolist(), selection.scores)


@pytest.mark.parametrize("size", [1, 2])
def test_parameters_are_drawn_by_their_fisher_value_without_replacement(size: int) -> None:
    pool = make_pool([0])
    gradients = np.array([[2.0, 0.0, 1.0, 0.5, 1.0]], np.float32)
    strategy = strategies.get("usim_f", {"size": size})
    counts = Counter[tuple[int, ...]]()
    for round_no in range(1500):
        signals: dict[str, Array] = {}
        for _ in range(2):
            (need,) = strategy.wants(pool, signals, 1, seed=0, round_no=round_no)
            signals[need.name] = found(need, {"mc_class": np.ones((1, 2)), "gradients": gradients})
        (need,) = strategy.wants(pool, signals, 1, seed=0, round_no=round_no)
        assert isinstance(need.view, Gradients)
        counts[need.view.indices or ()] += 1
    weights = dict(enumerate((gradients[0] ** 2).tolist()))
    total = sum(weights.values())
    chances = Counter[tuple[int, ...]]()
    for drawn in itertools.permutations([i for i, weight in weights.items() if weight], size):
        chance, rest = 1.0, total
        for i in drawn:
            chance, rest = chance * weights[i] / rest, rest - weights[i]
        chances[tuple(sorted(drawn))] += chance  # type: ignore[assignment]
    likely(counts, chances)


def test_usim_f_without_any_gradient_still_answers() -> None:
    pool = make_pool([0] * 6)
    values = {"mc_class": np.ones((6, 2)), "gradients": np.zeros((6, 4), np.float32)}
    selection = ask(strategies.get("usim_f"), pool, values, 3)
    assert len(set(selection.rows.tolist())) == 3
    np.testing.assert_array_equal(selection.scores, 0)


# --- power noise


@pytest.mark.parametrize("beta", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("name", "view"), [("power_bald", Dropout(10, 0.1)), ("power_entropy", Probs())])
def test_power_draws_in_proportion_without_replacement(name: str, view: View, beta: float) -> None:
    strategy = strategies.get(name, {"beta": beta})
    assert beta != 1 or strategy == strategies.get(name)
    (need,) = strategy.needs
    assert need.view == view
    pool = make_pool([0, 0, 0, 1, 1, 2, 2], labeled=[1], held=[4])
    scores = np.array([0.1, 9.0, 0.4, 0.0, np.nan, 0.2, 0.0], np.float32)
    counts = Counter[tuple[int, ...]]()
    for round_no in range(1200):
        rows = ask(strategy, pool, {need.name: scores}, 5, round_no=round_no).rows.tolist()
        assert set(rows[3:]) == {3, 6}
        counts[tuple(rows[:2])] += 1
    weights = {row: float(scores[row]) ** beta for row in (0, 2, 5)}
    total = sum(weights.values())
    likely(
        counts,
        {(a, b): weights[a] / total * weights[b] / (total - weights[a]) for a, b in itertools.permutations(weights, 2)},
    )


# --- class-stratified power-noised entropy


def slow_clasp(
    by_class: Array, common: Array, candidates: Sequence[int], k: int, turns: Sequence[int]
) -> dict[int, str]:
    """{row: reason} without noise, where the classes take turns in this order."""
    share = round(0.66 * k)
    quota = {c: share // len(turns) + (place < share % len(turns)) for place, c in enumerate(turns)}
    taken: dict[int, str] = {}
    while any(quota.values()):
        for c in turns:
            if quota[c]:
                quota[c] -= 1
                row = max((row for row in candidates if row not in taken), key=lambda row: by_class[row, c])
                taken[row] = f"class {c}"
    while len(taken) < k:
        taken[max((row for row in candidates if row not in taken), key=lambda row: common[row])] = "whole"
    return taken


def clasp_values(pool: Pool, seed: int = 0) -> dict[str, Array]:
    """Scores far apart: noise of 1 / 100 does not matter, noise of 1 does."""
    rng = np.random.default_rng(seed)
    by_class = 1.3 ** -np.stack([rng.permutation(len(pool)) for _ in range(4)], 1).astype(np.float32)
    common = 1.3 ** -rng.permutation(len(pool)).astype(np.float32)
    return {"class_entropy": by_class, "max_entropy": common}


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 12])
def test_clasp_pe_splits_two_thirds_over_the_classes(k: int) -> None:
    assert [need.view for need in strategies.get("clasp_pe").needs] == [Probs(), Probs()]
    strategy = strategies.get("clasp_pe", {"beta_first": 1e5, "beta_last": 1e5})
    values = {
        name: np.where(SOME.held.reshape(-1, *[1] * (v.ndim - 1)), np.nan, v) for name, v in clasp_values(SOME).items()
    }
    turns_seen = set()
    for round_no in range(40):
        selection = ask(strategy, SOME, values, k, round_no=round_no)
        assert len(set(selection.rows.tolist())) == k
        classes = ["whole" if "class" not in why else why[why.index("class") :][:7] for why in selection.why]
        chosen = dict(zip(selection.rows.tolist(), classes, strict=True))
        fitting = [
            turns
            for turns in itertools.permutations([1, 2, 3])
            if slow_clasp(values["class_entropy"], values["max_entropy"], SOME.candidates.tolist(), k, turns) == chosen
        ]
        assert fitting
        turns_seen.add(fitting[0])
    # Where it divides, the order of the classes makes no difference here.
    assert (len(turns_seen) > 1) == (k != 5)


def test_the_noise_of_clasp_pe_falls_exponentially() -> None:
    clasp: Any = strategies.get("clasp_pe")
    assert [clasp.beta(done) for done in range(12)] == pytest.approx([10 ** (2 * min(n, 9) / 9) for n in range(12)])
    other: Any = strategies.get("clasp_pe", {"beta_first": 2.0, "beta_last": 32.0, "rounds": 5})
    assert [other.beta(done) for done in range(6)] == pytest.approx([2, 4, 8, 16, 32, 32])
    once: Any = strategies.get("clasp_pe", {"rounds": 1})
    assert once.beta(0) == 100


@pytest.mark.parametrize(
    ("n_labeled", "k", "beta"), [(0, 1, 1.0), (1, 1, 4.0), (2, 1, 16.0), (7, 1, 16.0), (1, 2, 1.0), (3, 2, 4.0)]
)
def test_the_item_of_a_class_is_drawn_by_the_rounds_power(n_labeled: int, k: int, beta: float) -> None:
    # Of one or two, the first goes to a class, and every class is as likely.
    strategy = strategies.get("clasp_pe", {"beta_last": 16.0, "rounds": 3})
    pool = make_pool([0] * (3 + n_labeled), labeled=range(3, 3 + n_labeled))
    by_class = np.ones((len(pool), 3), np.float32)
    by_class[:3, 1:] = [[1.0, 0.9], [0.8, 0.8], [0.9, 1.0]]
    values = {"class_entropy": by_class, "max_entropy": np.ones(len(pool), np.float32)}
    counts = Counter[tuple[str, int]]()
    for round_no in range(900):
        selection = ask(strategy, pool, values, k, round_no=round_no)
        counts["class 1" if "class 1" in selection.why[0] else "class 2", int(selection.rows[0])] += 1
    powers = by_class[:3].astype(float) ** beta
    likely(
        counts,
        {(f"class {c}", row): powers[row, c] / powers[:, c].sum() / 2 for c in (1, 2) for row in range(3)},
    )


def test_clasp_pe_of_the_last_round_is_the_top_and_of_the_first_is_not() -> None:
    last = make_pool([0] * 20 + [1] * 45, labeled=range(20, 65))
    first = make_pool([0] * 20 + [1] * 45, held=range(20, 65))
    values = clasp_values(last)
    differ = Counter[str]()
    for round_no in range(40):
        for name, pool in (("last", last), ("first", first)):
            rows = ask(strategies.get("clasp_pe"), pool, values, 5, round_no=round_no).rows.tolist()
            tops = [
                set(slow_clasp(values["class_entropy"], values["max_entropy"], range(20), 5, turns))
                for turns in itertools.permutations([1, 2, 3])
            ]
            differ[name] += set(rows) not in tops
    assert differ["last"] <= 2
    assert differ["first"] >= 30


def test_clasp_pe_where_no_item_has_a_class() -> None:
    values = clasp_values(FRESH)
    values["class_entropy"][:, 2] = 0
    for k in (3, 9, 19):
        selection = ask(strategies.get("clasp_pe"), FRESH, values, k)
        assert len(set(selection.rows.tolist())) == k
        assert sum("class 2" in why for why in selection.why) in (round(0.66 * k) // 3, round(0.66 * k) // 3 + 1)


# --- spread over volumes


def slow_spread(pool: Pool, k: int, m: int, choose: Callable[[list[int], list[int], int], list[int]]) -> list[int]:
    """`choose(candidates, picked, count)` again and again, of which each volume's first stay."""
    picked: list[int] = []
    bound = m
    while len(picked) < min(k, len(pool.candidates)):
        given = Counter(pool.volume[picked].tolist())
        open_rows = [r for r in pool.candidates.tolist() if r not in picked and given[int(pool.volume[r])] < bound]
        if not open_rows:
            bound += m
            continue
        for row in choose(open_rows, picked, min(k - len(picked), len(open_rows))):
            if given[int(pool.volume[row])] < bound:
                given[int(pool.volume[row])] += 1
                picked.append(row)
    return picked


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 4, 6, 11, 14, 20])
def test_spreading_scores_and_features_is_the_plain_way(m: int, k: int) -> None:
    scores, features = np.random.default_rng(2).permutation(20).astype(np.float32), smooth(20, 4)
    uncertain = strategies.get("spread_over_volumes", {"per_volume": m})
    found_rows = ask(uncertain, SOME, {"max_entropy": np.where(SOME.held, np.nan, scores)}, k).rows.tolist()
    assert found_rows == slow_spread(
        SOME, k, m, lambda rows, _, count: sorted(rows, key=lambda row: -scores[row])[:count]
    )
    cover = strategies.get("spread_over_volumes", {"inner": "core_set", "per_volume": m})
    values = {"bottleneck": np.where(SOME.held[:, None], np.nan, features)}
    assert ask(cover, SOME, values, k).rows.tolist() == slow_spread(
        SOME, k, m, lambda rows, picked, count: slow_core_set(features, rows, [0, 10, 19, *picked], count)
    )


def everything(n: int, seed: int = 0) -> dict[str, Array]:
    """Values of every signal there is."""
    rng = np.random.default_rng(seed)
    vectors = {
        "bottleneck": 4,
        "contrastive": 4,
        "alges": 5,
        "mc_class": 3,
        "class_entropy": 3,
        "gradients": 7,
        "info_vae_latent": 6,
    }
    found_ones = {name: rng.random((n, width)) for name, width in vectors.items()}
    return found_ones | {"": rng.random(n)}


INNERS = [name for name in strategies.names() if name != "spread_over_volumes"]


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("inner", INNERS)
def test_no_volume_gives_more_while_others_have_any(inner: str, m: int) -> None:
    strategy, values = strategies.get("spread_over_volumes", {"inner": inner, "per_volume": m}), everything(20)
    room = np.bincount(SOME.volume[SOME.candidates], minlength=4)
    for k in (1, 3, 7, 14, 20):
        rows = ask(strategy, SOME, values, k).rows
        given = np.bincount(SOME.volume[rows], minlength=4)
        assert len(set(rows.tolist())) == given.sum() == min(k, 14)
        most = next(bound for bound in itertools.count(m, m) if np.minimum(room, bound).sum() >= len(rows))
        assert (given <= most).all()
        if most > m:
            assert (given >= np.minimum(room, most - m)).all()


@pytest.mark.parametrize("inner", INNERS)
def test_a_bound_that_does_not_bind_changes_nothing(inner: str) -> None:
    strategy, values = strategies.get("spread_over_volumes", {"inner": inner, "per_volume": 20}), everything(20)
    for k, round_no in ((1, 1), (5, 2), (20, 3)):
        bound, free = (ask(one, SOME, values, k, round_no=round_no) for one in (strategy, strategies.get(inner)))
        assert bound.rows.tolist() == free.rows.tolist()
        np.testing.assert_array_equal(bound.scores, free.scores)


# --- which rows act


# `spread` spaces over all slices of a volume, and `random` draws a number for each row, held ones too.
REMOVABLE = [name for name in strategies.names() if name not in ("spread", "random")]


@pytest.mark.parametrize("name", REMOVABLE)
def test_held_rows_are_as_if_they_were_not_there(name: str) -> None:
    strategy, values = strategies.get(name), everything(20)
    kept = np.flatnonzero(~SOME.held)
    without = make_pool([VOLUMES[row] for row in kept], labeled=np.flatnonzero(SOME.labeled[kept]))
    holes = {key: np.where(SOME.held.reshape(-1, *[1] * (v.ndim - 1)), np.nan, v) for key, v in values.items()}
    for k, round_no in itertools.product((1, 4, 14), (1, 2)):
        there = ask(strategy, SOME, holes, k, round_no=round_no)
        gone = ask(strategy, without, {key: value[kept] for key, value in values.items()}, k, round_no=round_no)
        assert there.rows.tolist() == kept[gone.rows].tolist()
        np.testing.assert_allclose(there.scores, gone.scores, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in strategies.names() if name != "spread"])
def test_labelled_rows_act_in_strategies_about_coverage_alone(name: str) -> None:
    strategy, values = strategies.get(name), everything(20)
    other = everything(20, seed=1)
    mixed = {
        key: np.where(SOME.labeled.reshape(-1, *[1] * (v.ndim - 1)), 3 * other[key], v) for key, v in values.items()
    }
    same = [
        ask(strategy, SOME, values, k).rows.tolist() == ask(strategy, SOME, mixed, k).rows.tolist() for k in range(2, 8)
    ]
    assert all(same) != (name in ("bsq", "core_gcn", "core_set", "metric_core_set", "typiclust"))


@pytest.mark.parametrize("name", strategies.names())
def test_reasons_are_short_sentences(name: str) -> None:
    for pool in (SOME, FRESH):
        for why in ask(strategies.get(name), pool, everything(20), 5).why:
            assert 10 <= len(why) <= 140
            assert not set(why) & set("\n_{}|")
