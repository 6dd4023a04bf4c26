"""A label that is sent again because its answer was lost counts once; a change of mind counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from datastore.folder import FolderDatastore
from loop.config import AppConfig
from loop.pool import Pool
from loop.rounds import Loop, Swept
from loop.store import Store

SHAPE = (6, 5, 4)


@dataclass
class Desk:
    """A volume, a round of all its slices, and a ticket for them."""

    datastore: FolderDatastore
    folder: Path
    ticket: str

    def send(self, value: int, **more: Any) -> dict[str, Any]:
        """A label that is `value` everywhere."""
        file = self.folder / f"label{value}.nii.gz"
        nib.save(nib.Nifti1Image(np.full(SHAPE, value, np.uint8), np.eye(4)), file)
        wish = {"annotator": "ann", "ticket": self.ticket, "slices": [1, 2], "params": {"client_id": "ann"}}
        return self.datastore.submit("a", file, **{**wish, **more})

    def sent(self) -> list[int]:
        return [row["id"] for row in self.datastore.loop.submitted.submissions("a")]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    studies, state = tmp_path / "studies", tmp_path / "state"
    studies.mkdir()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), studies / "a.nii.gz")
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    loop = Loop(store, AppConfig(labels=("one", "two"), strategy="random"))
    datastore = FolderDatastore(studies, state, loop)
    datastore.refresh()

    def nothing(pool: Pool, needs: Any) -> Swept:
        return Swept({}, np.zeros(len(pool.items), bool))

    loop.plan("random", nothing, model=None, budget=4)
    (ticket,) = loop.ask("random", "ann", 1)
    yield Desk(datastore, tmp_path, ticket.id)
    store.close()


def test_the_same_again_has_the_same_answer(desk: Desk) -> None:
    first = desk.send(1)
    assert [desk.send(1) for _ in range(2)] == [first, first]
    assert desk.sent() == [first["submission"]]


def test_a_change_of_mind_counts_and_so_does_changing_it_back(desk: Desk) -> None:
    numbers = [desk.send(value)["submission"] for value in (1, 2, 1)]
    assert desk.sent() == numbers
    mask = nib.load(desk.datastore.label_file("a", "final"))
    assert (np.asanyarray(mask.dataobj)[..., 1:3] == 1).all()


@pytest.mark.parametrize(
    "more", [{"slices": [1]}, {"params": {"label_info": [{"name": "two", "idx": 1}]}}, {"ticket": None}], ids=str
)
def test_the_same_file_with_another_meaning_is_another_label(desk: Desk, more: dict[str, Any]) -> None:
    first = desk.send(1)
    assert desk.send(1, **more)["submission"] > first["submission"]


def test_a_large_label_is_kept_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastore.annotations._MOST_IN_STORE", 0)
    assert desk.send(1) == desk.send(1)
    assert len(list((desk.datastore.state / "submissions").rglob("*.nii.gz"))) == 1
