"""ClaSP PE: class-stratified power-noised entropy."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter, places
from strategies._noise import power_noise
from strategies._signals import CLASS_ENTROPY
from strategies._strata import REST, stratified_top_k
from strategies.max_entropy import MaxEntropy


@dataclass(frozen=True)
class ClaspPe(Strategy):
    """A share of the batch split evenly over the foreground classes, each by top mean_S(p_c H); the rest by top mean_S H.

    All scores are power-noised with a beta that grows exponentially over the planned rounds. The round is counted in
    batches that are labelled: |L| / B, so that rounds of other strategies count too.
    """

    name = "clasp_pe"
    asks_for = "uncertain, with every class in turn"
    source = "Luth et al. 2026, ClaSP PE"

    share: float = parameter(0.66, "share of the batch that is split over the classes", low=0, high=1)
    beta_first: float = parameter(1.0, "beta of the first round; the larger, the less noise", low=1e-6, high=1e6)
    beta_last: float = parameter(100.0, "beta of the last planned round and after", low=1e-6, high=1e6)
    rounds: int = parameter(10, "rounds that are planned", low=1, high=100_000)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (CLASS_ENTROPY, MaxEntropy().signal)

    def beta(self, done: int) -> float:
        """The noise after so many rounds."""
        progress = min(done / (self.rounds - 1), 1.0) if self.rounds > 1 else 1.0
        return float(self.beta_first * (self.beta_last / self.beta_first) ** progress)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows = pool.candidates
        beta = self.beta(int(pool.labeled.sum()) // k)
        by_class = signals[CLASS_ENTROPY.name][rows]
        noised = [power_noise(by_class[:, number], beta, rng) for number in range(1, by_class.shape[1])]
        entropy = signals[MaxEntropy().signal.name][rows]
        common = power_noise(entropy, beta, rng)
        picked, strata = stratified_top_k(noised, common, k, rng, share=self.share)
        scores = np.array([(common if s == REST else noised[s])[i] for i, s in zip(picked, strata, strict=True)])
        why = np.empty(k, object)
        for number in range(by_class.shape[1]):
            # Where the scores of all items are asked of, without the noise.
            mine = np.flatnonzero(strata == (number - 1 if number else REST))
            what = f"uncertain where the model sees class {number}" if number else "uncertain as a whole"
            found = places(by_class[:, number] if number else entropy, picked[mine])
            why[mine] = [f"{what}: {place}" for place in found]
        return Selection(rows[picked], scores, tuple(why))
