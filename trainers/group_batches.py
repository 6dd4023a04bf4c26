"""Batches in which slices of one patient meet: a random order of slices would hardly ever bring two together."""

import math
from collections.abc import Iterator

import numpy as np

from trainers.representation import IntArray


class GroupBatches:
    """The batch sampler of group contrastive learning.

    Every slice begins a group of its own: the slice, one next to it, another of its volume, another of its patient, all
    distinct and each at random. What does not exist is left out, so a group may be shorter. A batch is groups of distinct
    patients.

    Args:
        volume, patient, position: (N,) of the slices. Slices next to each other differ by 1 in position.
        adjacent, same_volume, same_patient: which of these a group has besides its first slice.
        size: slices of a batch; as many whole groups as fit, at least one and at most one a patient.

    Source: metric-learning core-set paper, algorithm 1.
    """

    def __init__(
        self,
        volume: IntArray,
        patient: IntArray,
        position: IntArray,
        *,
        adjacent: bool,
        same_volume: bool,
        same_patient: bool,
        size: int,
    ) -> None:
        self.volume, self.patient, self.position = volume, patient, position
        self._row = {(int(v), int(p)): row for row, (v, p) in enumerate(zip(volume, position, strict=True))}
        self._of_volume, self._of_patient = _members(volume), _members(patient)
        self.adjacent, self.same_volume, self.same_patient = adjacent, same_volume, same_patient
        groups = size // (1 + adjacent + same_volume + same_patient)
        self.groups = max(1, min(groups, len(self._of_patient)))
        """Groups of a batch."""

    def __len__(self) -> int:
        """Batches of an epoch, at most."""
        return math.ceil(len(self.volume) / self.groups)

    def epoch(self, rng: np.random.Generator) -> Iterator[IntArray]:
        """Batches of rows; every slice begins a group at most once. Ends when too few patients have groups left."""
        left = [rng.permutation(rows).tolist() for rows in self._of_patient.values()]
        while len(left) >= self.groups:
            batch = list[int]()
            for place in rng.choice(len(left), self.groups, replace=False):
                batch += self.group(left[place].pop(), rng)
            yield np.array(batch, np.int64)
            left = [rows for rows in left if rows]

    def group(self, row: int, rng: np.random.Generator) -> list[int]:
        """The row, and one more for each kind of company that it has."""
        group = [row]
        for wanted, rows in (
            (self.adjacent, self._neighbours(row)),
            (self.same_volume, self._of_volume[int(self.volume[row])]),
            (self.same_patient, self._of_patient[int(self.patient[row])]),
        ):
            others = rows[~np.isin(rows, group)] if wanted else rows[:0]
            if len(others):
                group.append(int(rng.choice(others)))
        return group

    def _neighbours(self, row: int) -> IntArray:
        volume, position = int(self.volume[row]), int(self.position[row])
        found = [self._row.get((volume, position + step)) for step in (-1, 1)]
        return np.array([other for other in found if other is not None], np.int64)


def _members(numbers: IntArray) -> dict[int, IntArray]:
    """{number: the rows that have it, ascending}."""
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return {int(numbers[part[0]]): part for part in parts if len(part)}
