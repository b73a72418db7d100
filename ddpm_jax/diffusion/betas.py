"""Beta tables: T variances of single steps, q(x_n | x_{n-1}) = N(sqrt(1 - beta_n) x_{n-1}, beta_n I), n = 1..T.

Each function returns float64 [T], computed with NumPy.
"""

from collections.abc import Callable

import numpy as np


def linear(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, rescale: bool = False) -> np.ndarray:
    """Evenly spaced betas (Ho et al. 2020, section 4).

    rescale: both ends times 1000 / steps, so that another T destroys as much signal (Nichol & Dhariwal 2021, their code; Ho et
    al. do not). Few steps then make betas beyond 1, which are refused.
    """
    scale = 1000 / steps if rescale else 1.0
    return np.linspace(scale * beta_start, scale * beta_end, steps, dtype=np.float64)


def quadratic(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Evenly spaced in sqrt(beta): "quad" in the code of Ho et al. 2020."""
    return np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2


def scaled_linear(*, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """`quadratic` between the end points of latent diffusion (Rombach et al. 2022, Stable Diffusion)."""
    return quadratic(steps=steps, beta_start=beta_start, beta_end=beta_end)


def constant(*, steps: int = 1000, beta_end: float = 0.02) -> np.ndarray:
    """beta_end throughout ("const" in the code of Ho et al. 2020)."""
    return np.full(steps, beta_end, np.float64)


def _warmup(steps, beta_start, beta_end, fraction):
    """beta_end, but linear from beta_start over the first int(fraction T) steps."""
    betas = np.full(steps, beta_end, np.float64)
    rising = int(steps * fraction)
    betas[:rising] = np.linspace(beta_start, beta_end, rising, dtype=np.float64)
    return betas


def warmup10(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Linear over the first 10 % of the steps, then constant (code of Ho et al. 2020)."""
    return _warmup(steps, beta_start, beta_end, 0.1)


def warmup50(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Linear over the first half of the steps, then constant (code of Ho et al. 2020)."""
    return _warmup(steps, beta_start, beta_end, 0.5)


def jsd(*, steps: int = 1000) -> np.ndarray:
    """beta_n = 1 / (T - n + 1) (Sohl-Dickstein et al. 2015, section 2.4.1). The last is 1: zero terminal SNR."""
    return 1 / np.arange(steps, 0, -1, dtype=np.float64)


def sigmoid(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """From beta_start to beta_end along a logistic curve on [-6, 6] (code of Song et al. 2021, DDIM)."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, steps, dtype=np.float64)))


def _from_alpha_bar(alpha_bar, steps, beta_limit):
    """beta_n = 1 - alpha_bar(n/T) / alpha_bar((n-1)/T), at most beta_limit."""
    values = alpha_bar(np.arange(steps + 1, dtype=np.float64) / steps)
    return np.minimum(1 - values[1:] / values[:-1], beta_limit)


def cosine(*, steps: int = 1000, offset: float = 0.008, beta_limit: float = 0.999) -> np.ndarray:
    """alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2), s = offset (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(lambda u: np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, steps, beta_limit)


def sigmoid_alpha_bar(*, steps: int = 1000, low: float = -3.0, high: float = 3.0, tau: float = 1.0) -> np.ndarray:
    """alpha_bar(u) falls from 1 to 0 along a logistic curve on [low, high] / tau, and stays above 1e-9 (Chen 2023, alg. 1)."""

    def logistic(u):
        return 1 / (1 + np.exp(-(low + (high - low) * u) / tau))

    return _from_alpha_bar(
        lambda u: np.maximum((logistic(1.0) - logistic(u)) / (logistic(1.0) - logistic(0.0)), 1e-9), steps, 1.0
    )


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The betas after sqrt(alpha_bar) is shifted to 0 at n = T and scaled back at n = 1 (Lin et al. 2024, alg. 1)."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - (root / np.append(1.0, root[:-1])) ** 2


BETAS: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear,
    "quadratic": quadratic,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "constant": constant,
    "warmup10": warmup10,
    "warmup50": warmup50,
    "jsd": jsd,
    "sigmoid": sigmoid,
    "sigmoid_alpha_bar": sigmoid_alpha_bar,
}
