"""What every data source returns."""

from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
    """A whole split in memory.

    `arrays`: "image" uint8 [N, H, W, C] and "label" int32 [N]; `num_classes`: labels lie in 0 .. num_classes - 1.
    """

    arrays: dict[str, np.ndarray]
    num_classes: int
