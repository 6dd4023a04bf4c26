"""BSQ: of the most uncertain, those that are likely in the pool and unlikely among the annotated."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, parameter, places
from strategies._likelihood_ratio import likelihood_ratio_rows
from strategies._most_uncertain import MostUncertain
from strategies._signals import INFO_VAE_LATENT


@dataclass(frozen=True)
class Bsq(MostUncertain):
    """The n_unc most uncertain by MC-dropout variance, then argmax log q(z | pool) - log q(z | annotated) among them.

    q(z | X) = prod_k erfc(|z_k - mu_k| / (sqrt2 s_k)), mu and s those of X's latents in an infoVAE. The pool is everything
    that may be asked for or is annotated.
    """

    name = "bsq"
    asks_for = "uncertain, and of a kind that few labels cover"
    source = "BSQ paper, eq. 2-8"
    selection_cost = "B evaluations of (n_unc, 200) tail probabilities"
    further_cost = ("an infoVAE trained once for the images there are",)

    refit: bool = parameter(True, "count each pick as annotated when the next is chosen")
    floor: float = parameter(1e-3, "least standard deviation of a latent dimension", low=1e-6, high=1)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.uncertainty, INFO_VAE_LATENT)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        uncertainty, uncertain = self.most_uncertain(pool, signals, k, rng)
        known = pool.known
        picked, ratios = likelihood_ratio_rows(
            signals[INFO_VAE_LATENT.name][known], k, labeled=pool.labeled[known],
            candidates=pool.candidates_among_known[uncertain], refit=self.refit, floor=self.floor,
        )  # fmt: skip
        rows = known[picked]
        at = np.searchsorted(pool.candidates, rows)
        why = (f"uncertain ({place}), and of a kind that few labels cover" for place in places(uncertainty, at))
        return Selection(rows, ratios, tuple(why))
