"""What can be set of a training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; `seed` fixes initialisation, sampling and augmentation.

    Attributes:
        amp: "auto" computes in half precision where the device gains from it, "off" in float32.
        compile: by torch.compile; where that fails, the network is trained as it is.
        patience: epochs without a better validation Dice after which to stop, and to keep the best epoch's weights; 0: all
            epochs, and the last one's weights.
        loss: "dice_ce", "ce" or "weighted_ce", of annotated voxels.
        dual_branch: train along a second decoder that says what unannotated voxels may be (scribbles).
        parts: of a batch, one after the other through the network, from the start; more where memory does not suffice.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    seed: int
    amp: str = "auto"
    compile: bool = False
    patience: int = 0
    loss: str = "dice_ce"
    dual_branch: bool = False
    parts: int = 1
