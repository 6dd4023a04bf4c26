"""The annotate page's own code, without a browser: turning axes, drawing, and masks as other readers see them."""

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

HERE = Path(__file__).parent / "annotate"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    return subprocess.run([NODE, *arguments], capture_output=True, text=True, cwd=HERE, timeout=60)


def test_the_modules_hold_their_own_tests() -> None:
    ran = node("--test", *sorted(map(str, HERE.glob("*.test.mjs"))))
    assert ran.returncode == 0, ran.stdout[-4000:]


@pytest.mark.parametrize("rest", [0, 4])
def test_a_mask_is_read_by_nibabel_as_it_was_drawn(tmp_path: Path, rest: int) -> None:
    """Every slice axis; the affine of an oblique volume with permuted axes."""
    shape = (6, 4, 5)
    affine = np.array([[0.1, -2.9, 0.3, 12.5], [1.4, 0.2, 0.5, -80.25], [-0.3, 0.1, 4.8, 33.0], [0, 0, 0, 1]])
    wish = {"folder": str(tmp_path), "shape": shape, "affine": affine.tolist(), "rest": rest}
    ran = node("write_masks.mjs", json.dumps(wish))
    assert ran.returncode == 0, ran.stderr
    for axis in range(3):
        image = nib.load(tmp_path / f"axis{axis}.nii.gz")
        found = np.asanyarray(image.dataobj)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        assert (found.shape, found.dtype) == (shape, np.uint8)
        wanted = np.full(shape, rest, np.uint8)
        others = [length for other, length in enumerate(shape) if other != axis]
        for index, seed in ((0, 1), (shape[axis] - 2, 3)):
            plane = (np.arange(np.prod(others)) * 7 + seed) % 5
            wanted[(slice(None),) * axis + (index,)] = plane.reshape(others, order="F")
        np.testing.assert_array_equal(found, wanted)
