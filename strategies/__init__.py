"""Query strategies: one paper, one file, one class. `names()` lists what is served, `get(name)` makes one."""

from strategies._base import Need, ScoreStrategy, Selection, Signals, Strategy, parameter
from strategies._registry import get, names, parse, register, table
from strategies.alges_img import AlgesImg
from strategies.alges_sem import AlgesSem
from strategies.badge import Badge
from strategies.bald import Bald
from strategies.bsq import Bsq
from strategies.clasp_pe import ClaspPe
from strategies.core_gcn import CoreGcn
from strategies.core_set import CoreSet
from strategies.deal import Deal
from strategies.ensemble_entropy import EnsembleEntropy
from strategies.foreground_random import ForegroundRandom
from strategies.learning_loss import LearningLoss
from strategies.least_confidence import LeastConfidence
from strategies.margin import Margin
from strategies.max_entropy import MaxEntropy
from strategies.mc_variance import McVariance
from strategies.mean_std import MeanStd
from strategies.metric_core_set import MetricCoreSet
from strategies.power import Power
from strategies.random import Random
from strategies.spread import Spread
from strategies.spread_over_volumes import SpreadOverVolumes
from strategies.stochastic_batches import StochasticBatches
from strategies.suggestive_annotation import SuggestiveAnnotation
from strategies.tta import Tta
from strategies.typiclust import TypiClust
from strategies.usim_c import UsimC
from strategies.usim_f import UsimF
from strategies.vaal import Vaal
from strategies.variance_ratio import VarianceRatio

for _strategy in (
    Random, Spread, ForegroundRandom,
    MaxEntropy, Margin, LeastConfidence, McVariance, MeanStd, Bald, VarianceRatio, EnsembleEntropy, Tta,
    LearningLoss, Deal,
    CoreSet, SuggestiveAnnotation, TypiClust, MetricCoreSet, CoreGcn, Vaal,
    AlgesImg, AlgesSem, Badge, UsimC, UsimF, ClaspPe, Bsq,
):  # fmt: skip
    register(_strategy.name, _strategy)

# Wrappers: under their own name around whatever `inner` names, and under the names the literature knows them by.
register("stochastic_batches", lambda: StochasticBatches(MaxEntropy()), open_inner=True)
register("sb_max_entropy", lambda: StochasticBatches(MaxEntropy()))
register("sb_mc_variance", lambda: StochasticBatches(McVariance()))
register("sb_learning_loss", lambda: StochasticBatches(LearningLoss()))
register("sb_tta", lambda: StochasticBatches(Tta()))
register("sb_ensemble_entropy", lambda: StochasticBatches(EnsembleEntropy()))
register("power", lambda: Power(MaxEntropy()), open_inner=True)
register("power_entropy", lambda: Power(MaxEntropy()))
register("power_bald", lambda: Power(Bald()))
register("spread_over_volumes", lambda: SpreadOverVolumes(MaxEntropy()), open_inner=True)

__all__ = [
    "Need", "ScoreStrategy", "Selection", "Signals", "Strategy", "get", "names", "parameter", "parse", "register", "table",
]  # fmt: skip
