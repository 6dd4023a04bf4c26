"""In which numbers a training computes."""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Precision:
    """Mixed precision on a device; `half` is None where everything is float32."""

    device: torch.device
    half: torch.dtype | None

    @classmethod
    def of(cls, device: torch.device, amp: str) -> Self:
        """With amp "auto": bfloat16 on CUDA devices that compute in it, float16 on older ones, float32 on the CPU."""
        if amp == "off" or device.type != "cuda":
            return cls(device, None)
        return cls(device, torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16)

    def autocast(self) -> torch.autocast:
        """A context in which layers compute in it."""
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps gradients in the range of float16; does nothing for the others, whose range is large."""
        return torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
