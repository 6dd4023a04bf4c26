"""What the papers say of their strategies, and what a campaign says of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.campaign.statistics import Bootstrap, Estimate, auc_difference


@dataclass(frozen=True)
class Claim:
    """That a strategy is better than others.

    Attributes:
        source: paper, and where in it.
    """

    source: str
    strategy: str
    others: tuple[str, ...]


CLAIMS = (
    Claim(
        "ALGES, section 5 and figure 3",
        "alges_img",
        ("random", "max_entropy", "margin", "least_confidence", "core_set", "alges_sem"),
    ),
    Claim("BSQ, section 3 and figure 3", "bsq", ("random", "mc_variance", "suggestive_annotation")),
    *(
        Claim(
            "USIM, section 4 (hippocampus)",
            name,
            ("random", "max_entropy", "mean_std", "bald", "core_set", "badge", "sb_max_entropy"),
        )
        for name in ("usim_c", "usim_f")
    ),
    *(
        Claim("Stochastic batches, table 1", f"sb_{name}", (name,))
        for name in ("max_entropy", "mc_variance", "tta", "learning_loss")
    ),
    Claim(
        "Metric-learning core-set, section 6",
        "metric_core_set",
        ("random", "core_set", "variance_ratio", "bald", "stochastic_batches", "core_gcn", "vaal"),
    ),
    Claim("ClaSP PE", "clasp_pe", ("foreground_random", "max_entropy", "power_entropy")),
    Claim("nnActive: hard to beat", "foreground_random", ("random", "max_entropy", "bald", "power_bald")),
)


@dataclass(frozen=True)
class Finding:
    """One comparison of a claim.

    Attributes:
        difference: in area under the learning curve, paired; positive is as claimed.
        seeds: that both have.
    """

    claim: Claim
    other: str
    difference: Estimate
    seeds: int

    @property
    def verdict(self) -> str:
        """Confirmed if the whole interval is above zero, contradicted if below, else it cannot be told."""
        if self.seeds < 2:
            return "cannot tell (one seed)"
        if self.difference.low > 0:
            return "confirmed"
        return "contradicted" if self.difference.high < 0 else "cannot tell"


def findings(bootstrap: Bootstrap, names: Sequence[str]) -> list[Finding]:
    """Every comparison of which the campaign has both strategies, with a seed in common."""
    there = [(claim, other) for claim in CLAIMS if claim.strategy in names for other in claim.others if other in names]
    found = [
        Finding(
            claim, other, auc_difference(bootstrap, claim.strategy, other), len(bootstrap.seeds(claim.strategy, other))
        )
        for claim, other in there
    ]
    return [one for one in found if not math.isnan(one.difference.value)]
