"""Preprocessed slices on disk: the same as from the files, stale never, and no more than allowed."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import models
from trainers.data import Case, Data, load
from trainers.prepared_cache import PreparedCache

SHAPE = (16, 12, 6)


def case(folder: Path, name: str = "one", slices: Sequence[int] = (1, 3), seed: int = 0, version: str = "1") -> Case:
    rng = np.random.default_rng(seed)
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "mask")]
    for path, array in zip(paths, (rng.normal(size=SHAPE), rng.integers(0, 3, SHAPE)), strict=True):
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([1.0, 2.0, 5.0, 1.0])), path)
    return Case(name, *paths, 2, slices, "training", version)


def same(first: Data, second: Data) -> bool:
    pairs = zip(first.training, second.training, strict=True)
    return all(
        torch.equal(a.data, b.data) and torch.equal(a.target, b.target) and a.spacing == b.spacing for a, b in pairs
    )


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_what_is_kept_is_what_the_files_say(tmp_path: Path, name: str) -> None:
    spec, cache = models.get(name, labels=("a", "b")), PreparedCache(tmp_path / "kept", 1 << 30)
    cases = [case(tmp_path, "one"), case(tmp_path, "two", (0, 5), seed=1)]
    plain = load(spec, cases)
    assert same(load(spec, cases, cache=cache), plain)
    for one in cases:
        one.image.unlink()  # the second time they are not read
    assert same(load(spec, cases, cache=cache), plain)


def test_more_slices_another_version_and_another_spec_are_read_anew(tmp_path: Path) -> None:
    spec, cache = models.get("unet2d", labels=("a", "b")), PreparedCache(tmp_path / "kept", 1 << 30)
    load(spec, [case(tmp_path)], cache=cache)
    more = case(tmp_path, slices=(1, 2, 3))
    assert same(load(spec, [more], cache=cache), load(spec, [more]))
    changed = case(tmp_path, slices=(1, 3), seed=7, version="2")
    assert same(load(spec, [changed], cache=cache), load(spec, [changed]))
    coarse = replace(spec, spacing=(2.0, 2.0))
    assert same(load(coarse, [changed], cache=cache), load(coarse, [changed]))
    assert not same(load(spec, [changed], cache=cache), load(coarse, [changed]))


def test_a_damaged_file_is_read_anew_and_nothing_is_kept_without_a_version(tmp_path: Path) -> None:
    spec, cache = models.get("unet2d", labels=("a", "b")), PreparedCache(tmp_path / "kept", 1 << 30)
    load(spec, [case(tmp_path, version="")], cache=cache)
    assert not cache.folder.exists()
    own = case(tmp_path)
    plain = load(spec, [own], cache=cache)
    (file,) = cache.folder.iterdir()
    for content in (b"", file.read_bytes()[:200], b"x" * 300):
        file.write_bytes(content)
        assert same(load(spec, [own], cache=cache), plain)


def test_the_folder_stays_below_its_limit_and_what_was_used_last_stays(tmp_path: Path) -> None:
    spec = models.get("unet2d", labels=("a", "b"))
    cases = [case(tmp_path, f"c{n}", seed=n) for n in range(4)]
    one = PreparedCache(tmp_path / "size", 1 << 30)
    load(spec, cases[:1], cache=one)
    size = next(one.folder.iterdir()).stat().st_size
    cache = PreparedCache(tmp_path / "kept", 3 * size)
    load(spec, cases[:3], cache=cache)
    for age, file in enumerate(sorted(cache.folder.iterdir())):
        os.utime(file, (1000 - age, 1000 - age))
    load(spec, cases[:1], cache=cache)  # used: the newest again
    load(spec, cases[3:], cache=cache)
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 3 * size
    for stays in (cases[0], cases[3]):
        stays.image.unlink()
    load(spec, [cases[0], cases[3]], cache=cache)
