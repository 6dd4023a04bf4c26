"""The encoder of the metric-learning core-set: what slices of one patient have in common, learned without masks."""

import torch
from torch import nn

from models.representation import Representation


def encoder() -> nn.Module:
    """ResNet-18 for one channel, from scratch: (B, 1, h, w) -> (B, 512), the globally averaged last layer, not normalised.

    Its weights are channels-last, and with them what it computes: convolutions are faster so, on CPUs too.

    Source: metric-learning core-set paper, section 3.2.1.
    """
    # Imported here because `import monai` takes seconds that a command line or a test of the loop need not pay.
    from monai.networks.nets import resnet18

    network = resnet18(
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    return network.to(memory_format=torch.channels_last)


CONTRASTIVE = Representation("contrastive", size=(128, 128), outputs=512, uses_labels=False, build=encoder)
"""Half the paper's 256 x 256: a fourth of the time and memory, which a campaign without a GPU feels most."""
