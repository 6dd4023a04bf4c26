"""Imported once by the fork server, so that every job starts with what it needs already loaded."""

import monai.inferers

import loop.worker
import models.residual_unet

__all__ = ["loop", "models", "monai"]
