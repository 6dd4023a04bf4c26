"""Imported once by the fork server, so that every job starts with what it needs already loaded."""

import monai.inferers
import torch._dynamo

import loop.worker
import models.residual_unet

# Torch imports _dynamo when a process makes its first optimiser: one and a half seconds of each training.
__all__ = ["loop", "models", "monai", "torch"]
