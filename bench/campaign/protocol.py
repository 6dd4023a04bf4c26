"""What a campaign does: how many are annotated when, by which model, trained how. The papers' own are presets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Self

from loop.errors import BadInput, unknown

PROTOCOLS = ("scratch", "finetune")


@dataclass(frozen=True)
class Protocol:
    """How a campaign goes.

    Attributes:
        start: annotated items, drawn at random, before the first choice.
        budgets: items that are annotated in each round, in turn.
        shares: of the pool that is annotated at the start and after each round; replaces `start` and `budgets`.
        protocol: "scratch" trains from a new initialisation each round, "finetune" goes on from the last round's weights.
        scale: how it is smaller than what it is named after; "" if it is not.
        conf: further settings of the server, by the names of `--conf`.
    """

    unit: str = "slice"
    start: int = 10
    budgets: tuple[int, ...] = (10,) * 5
    shares: tuple[float, ...] = ()
    model: str = "auto"
    protocol: str = "scratch"
    scale: str = ""
    conf: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise BadInput(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}.")
        if self.start < 1 or not self.budgets or min(self.budgets) < 1:
            raise BadInput(f"start and every budget must be at least 1, got {self.start} and {self.budgets}.")
        if any(not 0 < share <= 1 for share in self.shares) or list(self.shares) != sorted(set(self.shares)):
            raise BadInput(f"shares must rise between 0 and 1, got {self.shares}.")

    def of_pool(self, items: int) -> Self:
        """With shares turned into numbers for a pool of that many items.

        Raises:
            BadInput: the pool is too small.
        """
        start, budgets = self.start, self.budgets
        if self.shares:
            marks = [max(1, round(share * items)) for share in self.shares]
            start, budgets = marks[0], tuple(b - a for a, b in pairwise(marks) if b > a)
        if start + sum(budgets) > items:
            raise BadInput(
                f"The campaign annotates {start + sum(budgets)} items, but the pool has {items}: ask for fewer rounds, a smaller "
                "budget or start, or give it more volumes."
            )
        return replace(self, start=start, budgets=tuple(budgets), shares=())

    @property
    def trainings(self) -> int:
        """How many trainings' steps the last weights have behind them."""
        rounds = len(self.shares) or 1 + len(self.budgets)
        return rounds if self.protocol == "finetune" else 1

    def scaled(self, scale: float) -> Self:
        """With start, budgets and training steps times `scale`, at least 2, and a sentence that says so.

        Raises:
            BadInput: the scale is not in (0, 1].
        """
        if not 0 < scale <= 1:
            raise BadInput(f"scale must be over 0 and at most 1, got {scale}.")
        if scale == 1:
            return self
        own = int(self.conf.get("epochs", 12)) * int(self.conf.get("steps_per_epoch", 25))
        steps = max(20, round(scale * own))
        epochs = max(1, math.ceil(steps / 25))
        smaller = replace(
            self,
            start=max(2, round(scale * self.start)),
            budgets=tuple(max(2, round(scale * budget)) for budget in self.budgets),
            conf={**self.conf, "epochs": str(epochs), "steps_per_epoch": str(math.ceil(steps / epochs))},
        )
        items = "its shares of the pool" if self.shares else f"start {smaller.start} instead of {self.start}"
        first = "" if self.shares else f", {smaller.budgets[0]} a round instead of {self.budgets[0]}"
        return replace(
            smaller,
            scale=f"Scaled by {scale:g}: {items}{first}, about {steps} optimiser steps a training instead of {own}.",
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _steps(steps: int, batch: int, rate: float) -> dict[str, str]:
    """So many optimiser steps; an epoch is a hundredth of a training, and at least 25 steps."""
    epochs = max(1, min(100, steps // 25))
    return {
        "epochs": str(epochs), "steps_per_epoch": str(steps // epochs), "batch_size": str(batch), "learning_rate": str(rate),
    }  # fmt: skip


PRESETS: Mapping[str, Protocol] = {
    # ALGES, section 4: a batch of 10, 30 rounds, 50 epochs of what is annotated (at most 310 images).
    "alges": Protocol(start=10, budgets=(10,) * 30, model="unet_r18", conf=_steps(1000, 8, 5e-5)),
    # BSQ, section 3: 8000 steps of 8 images, 64 slices and then 32 in 11 rounds, twice as many looked at.
    "bsq": Protocol(
        start=64, budgets=(32,) * 11, model="dcan",
        conf={**_steps(8000, 8, 5e-4), "bsq.n_unc": "64", "suggestive_annotation.n_unc": "64"},
    ),
    "bsq_volumes": Protocol(
        unit="volume", start=1, budgets=(1,) * 11, model="unet3d",
        conf={**_steps(8000, 2, 5e-4), "bsq.n_unc": "2", "suggestive_annotation.n_unc": "2"},
    ),
    # USIM, appendix B: 100 and 100, fine-tuned in each round.
    "usim": Protocol(start=100, budgets=(100,) * 5, model="nnunet", protocol="finetune", conf=_steps(7500, 8, 1e-2)),
    # Stochastic batches, section 3: 10 and 10, from scratch.
    "stochastic_batches": Protocol(start=10, budgets=(10,) * 9, model="unet", conf=_steps(2500, 8, 1e-3)),
    # Metric-learning core-set, section 5: shares of the slices.
    "metric_core_set": Protocol(
        shares=(0.02, 0.03, 0.04, 0.05, 0.10, 0.15, 0.20, 0.40), model="unet", conf=_steps(2500, 8, 1e-3)
    ),
}  # fmt: skip
"""The papers' own protocols, so far as they state them; docs/campaigns.md says what they leave open."""


def preset(name: str) -> Protocol:
    """A paper's protocol by name.

    Raises:
        NotFound: no such preset; those there are are named.
    """
    if name not in PRESETS:
        raise unknown("preset", name, sorted(PRESETS))
    return PRESETS[name]


def seeds_of(text: str) -> Sequence[int]:
    """ "5" is seeds 0 to 4; "3-6" and "1,4" are those.

    Raises:
        BadInput: anything else.
    """
    try:
        if text.isdigit():
            found = list(range(int(text)))
        else:
            parts = [part.partition("-") for part in text.split(",")]
            found = [n for low, dash, high in parts for n in (range(int(low), int(high) + 1) if dash else [int(low)])]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise BadInput(
            f"seeds must be a number of seeds such as 5, a range such as 3-6, or a list such as 1,4; got {text!r}."
        )
    return sorted(set(found))
