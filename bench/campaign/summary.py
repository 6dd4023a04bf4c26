"""All that a report says of a campaign, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bench.campaign.composition import compositions
from bench.campaign.effort import Efficiency, foreground_efficiency, time_split
from bench.campaign.kept import UPPER_BOUND
from bench.campaign.labels_needed import TARGETS, Needed, labels_needed
from bench.campaign.penalty import Penalties, penalty_matrix
from bench.campaign.scores import Scores, scores_of
from bench.campaign.statistics import Bootstrap, Curve, Estimate, curve_difference, learning_curve
from bench.campaign.tables import Floats, Tables
from bench.campaign.verdict import Recommendation, recommend, reference_of


@dataclass(frozen=True)
class Summary:
    """Figures of a campaign against a reference, each computed when it is first asked for."""

    tables: Tables
    reference: str
    scores: Scores
    bootstrap: Bootstrap

    @classmethod
    def of(cls, tables: Tables, *, reference: str = "", seed: int = 0) -> Summary:
        """Of a campaign's tables.

        Raises:
            NotFound: the wanted reference is not in the campaign.
        """
        scores = scores_of(tables)
        return cls(tables, reference_of(tables, reference), scores, Bootstrap(scores, np.random.default_rng(seed)))

    @property
    def names(self) -> list[str]:
        """Strategies that have scores, and the upper bound last if it has."""
        return [*self.tables.strategies, *([UPPER_BOUND] if self.tables.has_upper_bound else [])]

    @property
    def baselines(self) -> list[str]:
        """The reference, and random if it is there and another."""
        there = dict.fromkeys((self.reference, "random"))
        return [name for name in there if name in self.tables.strategies]

    @cached_property
    def recommendation(self) -> Recommendation:
        return recommend(self.tables, reference=self.reference, bootstrap=self.bootstrap)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        return {name: learning_curve(self.bootstrap, name) for name in self.names}

    @cached_property
    def curves_2d(self) -> dict[str, Curve] | None:
        """Of the mean Dice of slices, if it was measured; with other resamples than the 3-D ones."""
        if not self.tables.scores["dice_2d"].notna().any():
            return None
        flat = Bootstrap(scores_of(self.tables, "dice_2d"), np.random.default_rng(0))
        return {name: learning_curve(flat, name) for name in self.names}

    @cached_property
    def by_round(self) -> dict[str, Curve]:
        """Dice above the reference after each round."""
        others = [name for name in self.tables.strategies if name != self.reference]
        return {name: curve_difference(self.bootstrap, name, self.reference) for name in others}

    @cached_property
    def by_class(self) -> dict[str, Floats]:
        """{strategy: (R, C)} mean Dice of each class after each round, over the seeds of the learning curve."""
        return {name: self._class_means(name) for name in self.names}

    def _class_means(self, name: str) -> Floats:
        curve, runs = self.curves[name], self.scores.runs[name]
        dice = runs.dice[[runs.seeds.index(seed) for seed in curve.seeds], : len(curve.mean)]
        there = np.isfinite(dice)
        total, count = np.where(there, dice, 0.0).sum(2), there.sum(2)
        means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        averaged: Floats = means.mean(0)
        return averaged

    @cached_property
    def differences(self) -> dict[str, dict[str, Estimate]]:
        """{baseline: {strategy: by how much its area is larger}}."""
        rows = self.recommendation.evidence
        found = {self.reference: {row.strategy: row.over_reference for row in rows if row.strategy != self.reference}}
        if "random" in self.baselines[1:]:
            found["random"] = {row.strategy: row.over_random for row in rows if row.strategy != "random"}
        return found

    @cached_property
    def needed(self) -> list[Needed]:
        """Labels needed, strategy by strategy, for each share of the upper bound."""
        every = [
            labels_needed(self.bootstrap, name, self.reference, share)
            for name in self.tables.strategies
            for share in TARGETS
        ]
        return [one for one in every if one is not None]

    @cached_property
    def penalties(self) -> Penalties:
        return penalty_matrix(self.scores, self.tables.strategies)

    @cached_property
    def compositions(self) -> pd.DataFrame:
        return compositions(self.tables)

    @cached_property
    def times(self) -> pd.DataFrame:
        return time_split(self.tables)

    @cached_property
    def efficiencies(self) -> Mapping[str, Efficiency]:
        found = {name: foreground_efficiency(self.tables, self.bootstrap, name) for name in self.tables.strategies}
        return {name: one for name, one in found.items() if one is not None}
