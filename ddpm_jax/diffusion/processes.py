"""Gaussian diffusion processes.

A process is two functions of time, from data (small t) to noise (large t):

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I)                                     (1)

It is kept as `log_alpha` and `sigma`; all else follows:

    log-SNR          log_snr(t) = 2 (log_alpha(t) - log sigma(t)), decreasing in t         (2)
    transition       q(x_t | x_s) = N(a x_s, b^2 I),  s < t,
                     a = alpha(t) / alpha(s),  b^2 = sigma(t)^2 (1 - SNR(t) / SNR(s))      (3)
    SDE              dx = f x dt + g dw,  f = d log_alpha / dt,  g^2 = -sigma^2 d log_snr / dt   (4)

1 - SNR(t)/SNR(s) is always written -expm1(log_snr(t) - log_snr(s)), and 1 - alpha^2 as -expm1(2 log_alpha): no differences
of nearly equal numbers. See Kingma et al. 2021 (Variational Diffusion Models), section 3 and appendix A.

A table of T betas is the process with t = n/T: exact at n = 0..T, linear in log_alpha between, derivatives from the left,
nan outside [0, 1].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddpm_jax.diffusion import betas as beta_tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Process:
    """A Gaussian diffusion. Its functions are `Partial`s of module-level functions and arrays, so it is a pytree.

    All functions of t are elementwise, for t of any shape.
    """

    log_alpha: Callable
    sigma: Callable
    time_input: Callable  # t -> what the network is shown of time
    t_min: jax.Array  # default lower end of training and sampling
    t_max: jax.Array
    prior_std: jax.Array  # of the state that sampling starts from
    num_steps: int = dataclasses.field(metadata={"static": True}, default=0)  # T of a table, 0 where time is continuous

    def alpha(self, t):
        return jnp.exp(self.log_alpha(t))

    def log_snr(self, t):
        """Equation (2); +inf where sigma = 0."""
        return 2 * (self.log_alpha(t) - jnp.log(self.sigma(t)))

    def drift(self, t):
        """f(t) of equation (4)."""
        return derivative(self.log_alpha, t)

    def diffusion2(self, t):
        """g(t)^2 of equation (4)."""
        return -(self.sigma(t) ** 2) * derivative(self.log_snr, t)


def derivative(f: Callable, t: jax.Array) -> jax.Array:
    """df/dt of an elementwise f, for t of any shape."""
    t = jnp.asarray(t, float)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def expand(coefficient: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes to a coefficient of shape [] or [B] until it broadcasts against `like` [B, ...]."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim)) if coefficient.ndim else coefficient


def add_noise(process: Process, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """x_t of equation (1). x0, eps: [B, ...]; t: [] or [B]."""
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


def one_minus_snr_ratio(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """1 - SNR(t) / SNR(s) for s < t, in (0, 1]; 1 at s = 0, where SNR(s) is infinite."""
    return -jnp.expm1(process.log_snr(t) - process.log_snr(s))


# ------------------------------------------------------------------------------------------------ tables of T steps


def _position(num_steps, t):
    """T t, snapped to the integer within 1e-3 of it (float32 has t = n/T only to 1e-7). The derivative stays T."""
    position = num_steps * jnp.asarray(t, float)
    nearest = jnp.round(position)
    position += jax.lax.stop_gradient(jnp.where(jnp.abs(nearest - position) < 1e-3, nearest - position, 0.0))
    return jnp.where((position >= 0) & (position <= num_steps), position, jnp.nan)


def _table_log_alpha(table, t):
    """Interpolates table [T + 1] linearly at T t. The interval is half open to the left, so derivatives are from the left."""
    num_steps = table.shape[0] - 1
    position = _position(num_steps, t)
    lower = jnp.clip(jnp.ceil(jnp.nan_to_num(position)).astype(int) - 1, 0, num_steps - 1)
    fraction = position - lower
    return (1 - fraction) * table[lower] + fraction * table[lower + 1]


def _table_index(num_steps, t):
    """The index 0..T-1 that networks trained on a table are shown at t = (index + 1) / T."""
    return _position(num_steps, t) - 1


def _variance_preserving_sigma(log_alpha, t):
    """sqrt(1 - alpha^2); a double where keeps the gradient finite at t = 0."""
    variance = -jnp.expm1(2 * log_alpha(t))
    zero = variance == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, variance)))


def from_betas(betas: np.ndarray) -> Process:
    """The variance-preserving chain of a beta table [T], as a process on t in [0, 1] with t = n/T (Ho et al. 2020, eq. 4).

    alpha(n/T)^2 is the product of (1 - beta_k) for k = 1..n, summed in logarithms in float64. The network is shown n - 1.
    Sampling starts from N(0, I). Raises ValueError, naming the index, for a beta outside (0, 1); exactly 1 is legal as the
    last entry only (zero terminal SNR).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"betas must be a vector of at least one entry, found shape {betas.shape}")
    legal = (betas > 0) & (betas < 1)
    legal[-1] |= betas[-1] == 1
    if not legal.all():
        index = int(np.argmin(legal))
        raise ValueError(f"betas must lie in (0, 1) (the last may be 1), found betas[{index}] = {betas[index]}")
    with np.errstate(divide="ignore"):
        table = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
    log_alpha = Partial(_table_log_alpha, jnp.asarray(table, float))
    return Process(
        log_alpha=log_alpha,
        sigma=Partial(_variance_preserving_sigma, log_alpha),
        time_input=Partial(_table_index, len(betas)),
        t_min=jnp.asarray(1 / len(betas), float),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(1.0),
        num_steps=len(betas),
    )


def linear(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Process:
    """The table of Ho et al. 2020."""
    return from_betas(beta_tables.linear(steps, beta_start, beta_end))


PROCESSES: dict[str, Callable[..., Process]] = {"linear": linear}
