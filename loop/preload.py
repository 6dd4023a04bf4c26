"""Imported once by the fork server, so that every job starts with what it needs already loaded."""

import monai.inferers
import monai.networks.nets

import loop.worker

__all__ = ["loop", "monai"]
