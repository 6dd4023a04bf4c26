"""Sweeps compute each view once, and their results are found again on disk."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from loop.pool import WHOLE, ItemTable, Pool
from loop.signal_cache import Keys, SignalCache
from loop.signals import Batch, PoolMean, Signal, sweep, sweep_mean
from loop.views import Features, Probs, View


class CountingViews:
    """Batches of two rows; the views of a row are made of its number."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], frozenset[View]]] = []

    def batches(self, rows: np.ndarray) -> Iterator[Batch]:
        for start in range(0, len(rows), 2):
            yield Batch(rows[start : start + 2], None)

    def compute(self, batch: Batch, views: frozenset[View]) -> Mapping[View, Tensor]:
        self.asked.append((tuple(batch.rows.tolist()), views))
        values = torch.from_numpy(batch.rows).double()
        return {view: values[:, None] * (10 if view == Features() else 1) for view in views}


SIGNALS = (
    Signal("plain", Probs(), lambda view: view[:, 0]),
    Signal("negative", Probs(), lambda view: -view[:, 0]),
    Signal("vector", Features(), lambda view: view.expand(-1, 3)),
)


@pytest.mark.parametrize(("count", "views"), [(3, {Probs(), Features()}), (2, {Probs()})])
def test_a_sweep_computes_each_view_once_a_batch_and_no_other(count: int, views: set[View]) -> None:
    counting, rows = CountingViews(), np.array([4, 1, 7])
    emitted: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
    sweep(counting, SIGNALS[:count], rows, lambda at, values: emitted.append((at, values)))
    assert counting.asked == [((4, 1), frozenset(views)), ((7,), frozenset(views))]
    np.testing.assert_array_equal(np.concatenate([at for at, _ in emitted]), rows)
    for _, values in emitted:
        assert set(values) == {signal.name for signal in SIGNALS[:count]}
        assert all(value.dtype == np.float32 for value in values.values())
    np.testing.assert_array_equal(np.concatenate([values["negative"] for _, values in emitted]), -rows)
    if count == 3:
        np.testing.assert_array_equal(emitted[0][1]["vector"], np.outer([40, 10], [1, 1, 1]))


def test_a_sweep_of_nothing_emits_nothing() -> None:
    sweep(CountingViews(), SIGNALS, np.empty(0, np.int64), lambda at, values: pytest.fail("emitted"))


@pytest.mark.parametrize("reduce", [lambda view: view.sum(), lambda view: view.flatten()[:1], lambda view: view.T])
def test_a_reduction_must_give_one_value_an_item(reduce: object) -> None:
    signal = Signal("wrong", Probs(), reduce)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'wrong' must give one value an item, \(2, ...\)"):
        sweep(CountingViews(), [signal], np.array([1, 2]), lambda at, values: None)


@pytest.mark.parametrize("rows", [[4, 1, 7], [3], [5, 5, 2]])
def test_a_mean_over_rows(rows: list[int]) -> None:
    counting = CountingViews()
    mean = PoolMean("squares", Features(), lambda view: torch.cat([view, view.square()], 1), np.array(rows))
    found = sweep_mean(counting, mean)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [10 * np.mean(rows), 100 * np.mean(np.square(rows))])
    assert {views for _, views in counting.asked} == {frozenset({Features()})}
    single = PoolMean("first", Probs(), lambda view: view[:, 0], np.array(rows))
    assert sweep_mean(CountingViews(), single) == pytest.approx(np.mean(rows))


def test_a_mean_loses_nothing_to_single_precision() -> None:
    tiny = PoolMean("tiny", Probs(), lambda view: torch.where(view[:, :1] == 0, 1e8, 1.0).float(), np.arange(101))
    assert sweep_mean(CountingViews(), tiny) * 101 == pytest.approx(1e8 + 100, abs=1e-3)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'none' is a mean over rows, but none of the 0"):
        sweep_mean(CountingViews(), PoolMean("none", Probs(), lambda view: view, np.empty(0, np.int64)))
    with pytest.raises(ValueError, match="'wrong' must give one value an item"):
        sweep_mean(CountingViews(), PoolMean("wrong", Probs(), lambda view: view.sum(), np.arange(2)))


# --- the cache

ENTROPY = Signal("entropy", Probs(), lambda view: view)


def make_keys(images: Mapping[str, int], *, whole: bool = False) -> Keys:
    """{image@version: slices} as a pool."""
    lengths = [1 if whole else n for n in images.values()]
    volume = np.repeat(np.arange(len(images)), lengths)
    position = np.full(len(volume), WHOLE) if whole else np.concatenate([np.arange(n) for n in lengths])
    none = np.zeros(len(volume), bool)
    return Keys(list(images), Pool(ItemTable(list(images), volume, position), none, none, volume, volume, position))


KEYS = make_keys({"a@1": 3, "b@1": 2})
VALUES = {"1-D": np.arange(5, dtype=np.float32), "2-D": np.arange(20, dtype=np.float32).reshape(5, 4)}


@pytest.fixture
def cache(tmp_path: Path) -> SignalCache:
    return SignalCache(tmp_path / "signals")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, 0, 2]], ids=["all", "some, in any order"])
def test_what_was_kept_is_found(cache: SignalCache, rows: list[int], values: np.ndarray) -> None:
    for part in np.array_split(np.array(rows), 2):
        cache.append(ENTROPY, "d1", KEYS, part, values[part])
    found = SignalCache(cache.folder).load(ENTROPY, "d1", KEYS)
    assert found is not None
    assert found.dtype == np.float32
    expected = np.full_like(values, np.nan)
    expected[rows] = values[rows]
    np.testing.assert_array_equal(found, expected)


def test_another_signal_version_or_model_has_its_own_values(cache: SignalCache) -> None:
    newer, other = Signal("entropy", Probs(), ENTROPY.reduce, version=2), Signal("margin", Probs(), ENTROPY.reduce)
    asked = [(ENTROPY, "d1"), (ENTROPY, "d2"), (newer, "d1"), (other, "d1")]
    for number, (signal, digest) in enumerate(asked):
        assert cache.load(signal, digest, KEYS) is None
        cache.append(signal, digest, KEYS, np.arange(5), np.full(5, number, np.float32))
    for number, (signal, digest) in enumerate(asked):
        np.testing.assert_array_equal(cache.load(signal, digest, KEYS), [number] * 5)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"new@1": 2, "a@1": 3, "b@1": 2}, [None, None, 0, 1, 2, 3, 4]),
        ({"b@1": 2, "a@1": 3}, [3, 4, 0, 1, 2]),
        ({"a@2": 3, "b@1": 2}, [None, None, None, 3, 4]),
        ({"b@1": 2}, [3, 4]),
        ({"new@1": 1}, [None]),
        ({"a@1": 3}, [0, 1, 2]),
        ({"a@1": 2, "b@1": 2}, [0, 1, 3, 4]),
    ],
    ids=["grown", "reordered", "changed file", "smaller", "all new", "image gone", "fewer slices"],
)
def test_values_follow_their_images(cache: SignalCache, images: dict[str, int], expected: list[float | None]) -> None:
    cache.append(ENTROPY, "d1", KEYS, np.arange(5), VALUES["1-D"])
    np.testing.assert_array_equal(cache.load(ENTROPY, "d1", make_keys(images)), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("stored_whole", [True, False])
def test_whole_volumes_and_slices_are_different_items(cache: SignalCache, stored_whole: bool) -> None:
    images = {"a@1": 3, "b@1": 2}
    kept, other = make_keys(images, whole=stored_whole), make_keys(images, whole=not stored_whole)
    values = np.arange(len(kept.pool), dtype=np.float32)
    cache.append(ENTROPY, "d1", kept, np.arange(len(kept.pool)), values)
    np.testing.assert_array_equal(cache.load(ENTROPY, "d1", kept), values)
    assert np.isnan(cache.load(ENTROPY, "d1", other)).all()


def test_half_written_files_are_ignored_and_removed(cache: SignalCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.append(ENTROPY, "d1", KEYS, np.arange(5), VALUES["1-D"])
    (chunk,) = cache.folder.rglob("*.npz")
    (chunk.parent / ".half.npz").write_bytes(chunk.read_bytes()[:50])
    np.testing.assert_array_equal(cache.load(ENTROPY, "d1", KEYS), VALUES["1-D"])

    def fails(file: Path, **arrays: np.ndarray) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="disk full"):
        cache.append(ENTROPY, "d1", KEYS, np.arange(5), VALUES["1-D"])
    assert {file.name for file in cache.folder.rglob("*.npz")} == {chunk.name, ".half.npz"}


def test_only_some_models_are_kept(cache: SignalCache) -> None:
    cache.keep_only(["d1"])
    for digest in ("d1", "d2", "d3"):
        cache.append(ENTROPY, digest, KEYS, np.arange(5), VALUES["1-D"])
    cache.keep_only(["d1", "d3"])
    assert sorted(folder.name for folder in cache.folder.iterdir()) == ["d1", "d3"]
    assert cache.load(ENTROPY, "d2", KEYS) is None
    assert cache.load(ENTROPY, "d3", KEYS) is not None
