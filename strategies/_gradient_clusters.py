"""What the strategies share that spread over gradient embeddings by k-means++ seeding."""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter, places
from strategies._kmeanspp import kmeans_pp


@dataclass(frozen=True)
class GradientClusters(Strategy):
    """k-means++ seeding on one embedding (N, D) of the candidates."""

    embedding: ClassVar[Signal]
    selection_cost = "B reads of the embeddings for each local trial"

    first: str = parameter(
        "random", "the first item: random, or the one with the largest gradient", choices=("random", "max_norm")
    )
    local_trials: int = parameter(0, "draws a pick, of which the best is kept; 0 is 2 + ln(budget)", low=0, high=1000)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.embedding,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows = pool.candidates
        embeddings = signals[self.embedding.name][rows]
        trials = self.local_trials or 2 + int(np.log(k))
        first = cast(Literal["random", "max_norm"], self.first)
        picked, squares = kmeans_pp(embeddings, k, rng, first=first, local_trials=trials)
        # Without a temporary of the embeddings' size, which may be gigabytes.
        lengths = np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64)
        why = (
            f"would change the model {'just as one before it' if place and not square else 'in its own way'}; how much: {share}"
            for place, (square, share) in enumerate(zip(squares, places(lengths, picked), strict=True))
        )
        return Selection(rows[picked], np.sqrt(squares), tuple(why))
