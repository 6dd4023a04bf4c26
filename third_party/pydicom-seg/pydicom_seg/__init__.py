"""Stand-in for pydicom-seg 0.4.1: the three names that monailabel 0.8.5 uses, for pydicom 3."""

from pydicom_seg import template
from pydicom_seg.errors import UnsupportedSegmentation
from pydicom_seg.reader import MultiClassReader
from pydicom_seg.writer import MultiClassWriter

__all__ = ["MultiClassReader", "MultiClassWriter", "UnsupportedSegmentation", "template"]
