"""The 8x8 handwritten digits that come inside scikit-learn: no download, a second to load."""

import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError


def load(*, split: str) -> Source:
    """All 1797 digits, uint8 [1797, 8, 8, 1]; the stored grey levels 0..16 are spread over 0..255.

    Raises UserError for any split but "train".
    """
    if split != "train":
        raise UserError(f"digits has one split, 'train', which holds all 1797 images; found split {split!r}.")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    identity = {"set": "digits", "split": split, "examples": len(images), "classes": [str(i) for i in range(10)]}
    return Source({"image": images, "label": bunch.target.astype(np.int32)}, 10, identity)
