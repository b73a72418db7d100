"""Beta tables: T variances of single steps, q(x_n | x_{n-1}) = N(sqrt(1 - beta_n) x_{n-1}, beta_n I), in float64."""

import numpy as np


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Evenly spaced betas (Ho et al. 2020, section 4). Returns float64 [steps].

    The end points are not scaled by 1000 / steps: at another number of steps, choose them anew.
    """
    return np.linspace(beta_start, beta_end, steps, dtype=np.float64)
