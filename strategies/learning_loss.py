"""Learning loss."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._signal_score import SignalScore
from strategies._signals import PREDICTED_LOSS


@dataclass(frozen=True)
class LearningLoss(SignalScore):
    """The loss that a head of the network, trained with it, predicts for the item."""

    name = "learning_loss"
    asks_for = "where the model expects the greatest loss of itself"
    source = "Yoo & Kweon 2019; stochastic batches paper, baselines"

    @property
    def signal(self) -> Signal:
        return PREDICTED_LOSS
