"""Query strategies: one paper, one file, one class. `names()` lists what is served, `get(name)` makes one."""

from strategies._base import ScoreStrategy, Selection, Signals, Strategy, parameter
from strategies._registry import get, names, register, table
from strategies.foreground_random import ForegroundRandom
from strategies.least_confidence import LeastConfidence
from strategies.margin import Margin
from strategies.max_entropy import MaxEntropy
from strategies.random import Random
from strategies.spread import Spread
from strategies.stochastic_batches import StochasticBatches

for _strategy in (Random, Spread, ForegroundRandom, MaxEntropy, Margin, LeastConfidence):
    register(_strategy.name, _strategy)
register("sb_max_entropy", lambda: StochasticBatches(MaxEntropy()))

__all__ = ["ScoreStrategy", "Selection", "Signals", "Strategy", "get", "names", "parameter", "register", "table"]
