"""Features in two dimensions, for people to look at."""

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray

METHODS = ("tsne", "pca")

_LEAST_ROWS = 4
_COMPONENTS = 50
_PERPLEXITY = 30.0


def embed(features: FloatArray, seed: int, method: str = "tsne") -> npt.NDArray[np.float32] | None:
    """(N, D) features -> (N, 2); None for fewer than four items, or equal ones.

    Args:
        method: `pca`, the two directions of most variance; `tsne`, t-SNE of the first 50 of them.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    # In units of the largest, so that gradients of any size neither vanish nor overflow in single precision.
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    largest = np.abs(centred).max(initial=0.0)
    if len(features) < _LEAST_ROWS or largest == 0:
        return None
    components = min(_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(centred / largest)
    if method == "pca":
        return np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - components)))).astype(np.float32)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points: npt.NDArray[np.float32] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return points.astype(np.float32)
