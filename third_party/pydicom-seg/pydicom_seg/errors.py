"""The one error of this package: a mask or a DICOM SEG that could not be converted without a doubt."""


class UnsupportedSegmentation(ValueError):
    """Says which rule was broken, what was got, and the way out: a refused mask can be mended, a wrong one goes unseen."""

    def __init__(self, rule: str, got: object, way_out: str) -> None:
        super().__init__(f"{rule} Got: {got}. {way_out}")
