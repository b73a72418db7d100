"""The mathematics of the package: a Gaussian diffusion is two functions of time.

From data (small t) to noise (large t),

    x_t = alpha(t) x_0 + sigma(t) eps,   eps ~ N(0, I)                                                       (1)

and all else follows from alpha and sigma:

    log-SNR       log_snr(t) = 2 (log alpha(t) - log sigma(t)), decreasing in t                              (2)
    transition    q(x_t | x_s) = N(a x_s, b^2 I), s < t,
                  a = alpha_t / alpha_s,  b^2 = sigma_t^2 r,  r = 1 - SNR_t / SNR_s                          (3)
    posterior     q(x_s | x_t, x_0) = N(a (sigma_s / sigma_t)^2 x_t + alpha_s r x_0, sigma_s^2 r I)          (4)
    SDE           dx = f x dt + g dw,  f = d log_alpha / dt,  g^2 = -sigma^2 d log_snr / dt                  (5)
    reverse SDE   dx = (f x - g^2 score) dt + g dw (time running down),  score = -eps / sigma                (6)
    its ODE       dx = x_0 d alpha + eps d sigma,  x_0 and eps estimated at (x, t)                           (7)
    prior         N(0, prior_std^2 I), what sampling starts from in place of q(x_{t_max})                    (8)

(1)-(4): Kingma et al. 2021 (Variational Diffusion Models), section 3 and appendix A. (5)-(7): Song et al. 2021 (score SDE), eq.
5, 6, 13, for the f and g that have the marginals (1); (7) is the probability-flow ODE with E[x_0 | x_t], E[eps | x_t] put in.

Two rules keep the numbers right. Differences of nearly equal numbers are written in log-SNR: r = -expm1(log_snr_t - log_snr_s),
1 - alpha^2 = -expm1(2 log_alpha). And both ends stay finite: sigma(0) = 0 (log-SNR +inf) is legal for tables, and so is
alpha(t_max) = 0 (zero terminal SNR), for which alpha is kept beside log_alpha: there it has a derivative, its logarithm none.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Start(NamedTuple):
    """The default lower ends of time for each use."""

    training: jax.Array
    sampling: jax.Array
    likelihood: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Process:
    """A Gaussian diffusion. Its functions are `Partial`s of module-level functions and arrays, so it is a pytree.

    All functions of t are elementwise, for t of any shape. `processes` has the constructors. The fields compute and check
    nothing. What is built on them, from the methods on, raises ValueError for a concrete time outside [0, t_max].
    """

    log_alpha: Callable
    alpha: Callable
    sigma: Callable
    inverse_log_snr: Callable  # log_snr -> t, exactly on the same interpolation
    time_input: Callable  # t -> what the network is shown of time
    t_min: Start
    t_max: jax.Array
    prior_std: jax.Array
    num_steps: int = dataclasses.field(metadata={"static": True}, default=0)  # T of a table, 0 where time is continuous

    def log_snr(self, t):
        """Equation (2); +inf, with gradient 0, where sigma = 0; -inf where alpha = 0."""
        check_times(self, t=t)
        sigma = self.sigma(t)
        zero = sigma == 0
        return jnp.where(zero, jnp.inf, 2 * (self.log_alpha(t) - jnp.log(jnp.where(zero, 1.0, sigma))))

    def drift(self, t):
        """f(t) of equation (5); infinite where alpha = 0."""
        check_times(self, t=t)
        return derivative(self.log_alpha, t)

    def diffusion2(self, t):
        """g(t)^2 of equation (5), as 2 sigma (sigma' - f sigma), for t > 0; infinite where alpha = 0."""
        sigma = self.sigma(t)
        return 2 * sigma * (derivative(self.sigma, t) - self.drift(t) * sigma)


def derivative(f: Callable, t: jax.Array) -> jax.Array:
    """df/dt of an elementwise f, for t of any shape."""
    t = jnp.asarray(t, float)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def reaches_data(process: Process) -> bool:
    """Whether it is a table with a last step to sigma = 0, as that of betas."""
    return process.num_steps > 0 and float(process.sigma(0.0)) == 0


def root(value: jax.Array) -> jax.Array:
    """sqrt(value), with the gradient 0 where the value is 0."""
    zero = value == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, value)))


def expand(coefficient: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes to a coefficient of shape [] or [B] until it broadcasts against `like` [B, ...]. Else: ValueError."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim and coefficient.shape != like.shape[:1]:
        raise ValueError(
            f"a time must be one number or one per example: found shape {list(coefficient.shape)} for x of {list(like.shape)}"
        )
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim)) if coefficient.ndim else coefficient


def concrete(*trees) -> bool:
    """Whether all of these are known now, so that they can be checked: not inside jit, vmap or grad."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_times(process: Process, **times: jax.Array) -> None:
    """ValueError where a concrete time lies outside [0, t_max], or s after t. Named, so that the error can say which."""
    if not concrete(process.t_max, times):
        return
    for name, t in times.items():
        if np.asarray(t).dtype.kind in "OSU":  # NumPy would read "0.5" as a number
            raise ValueError(f"{name} must be a number or an array of them, found {t!r}")
    t_max = float(process.t_max)
    known = {name: np.asarray(t, jax.dtypes.canonicalize_dtype(float)) for name, t in times.items()}
    for name, t in known.items():
        if not np.all((t >= 0) & (t <= t_max)):
            low, high = t.min(), t.max()
            found = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise ValueError(f"{name} must lie in [0, t_max = {t_max:.9g}], found {found}{_number_of_a_step(process, t)}")
    if "s" in known and np.any(known["s"] > known["t"]):
        raise ValueError(f"s must not be later than t, found s = {times['s']} and t = {times['t']}")


def _number_of_a_step(process, t):
    """Of times that look like the numbers of a table's steps: what the time would be; else ""."""
    total, n = process.num_steps, t.max()
    if not total or np.any(t != np.rint(t)) or np.any(t < 0) or n > total:
        return ""
    return f": step n of this table, n = 1 .. {total}, is at the time t = n/{total}, as step {n:g} at {n / total:g}"


def add_noise(process: Process, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """x_t of equation (1). x0, eps: [B, ...]; t: [] or [B], in [0, t_max]."""
    check_times(process, t=t)
    if x0.shape != eps.shape:
        raise ValueError(f"x0 and eps must be of one shape, found {list(x0.shape)} and {list(eps.shape)}")
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


def one_minus_snr_ratio(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """r = 1 - SNR_t / SNR_s for s < t, in (0, 1]; 1 where SNR_s is infinite or SNR_t is 0."""
    return -jnp.expm1(process.log_snr(t) - process.log_snr(s))


def transition(process: Process, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a and b^2 of q(x_t | x_s) = N(a x_s, b^2 I), equation (3). s <= t."""
    check_times(process, t=t, s=s)
    return jnp.exp(process.log_alpha(t) - process.log_alpha(s)), process.sigma(t) ** 2 * one_minus_snr_ratio(process, t, s)


def prior_sample(process: Process, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A sample of the prior, equation (8)."""
    return process.prior_std * jax.random.normal(key, shape)


def prior_log_density(process: Process, x: jax.Array) -> jax.Array:
    """Per example, log N(x; 0, prior_std^2 I) in nats, summed over its elements. x: [B, ...]. Returns [B]."""
    terms = -0.5 * (x / process.prior_std) ** 2 - jnp.log(process.prior_std) - 0.5 * jnp.log(2 * jnp.pi)
    return terms.reshape(len(x), -1).sum(1)


def prior_kl(process: Process, x0: jax.Array) -> jax.Array:
    """Per example, KL(q(x_{t_max} | x_0) || prior) in nats, summed over its elements. x0: [B, ...]. Returns [B].

    1/2 sum [v + (alpha x_0 / p)^2 - 1 - log v],  v = (sigma / p)^2, p = prior_std, alpha and sigma at t_max.
    """
    log_v = 2 * (jnp.log(process.sigma(process.t_max)) - jnp.log(process.prior_std))
    terms = 0.5 * (jnp.expm1(log_v) - log_v + (process.alpha(process.t_max) * x0 / process.prior_std) ** 2)
    return terms.reshape(len(x0), -1).sum(1)
