"""Processes: constructors of `Process`. Parameters of continuous ones may be traced.

Discrete: a table of T betas is the process with t = n/T on [0, 1]: exact at n = 0..T, linear in log_alpha between (in alpha
where the last is 0), derivatives from the left, nan outside. The network is shown n - 1.

Continuous: t in [0, t_max]; the network is shown 999 t / t_max (vp, sub_vp, continuous_cosine, rectified_flow,
trig_flow), log sigma (ve) or log(sigma) / 4 (edm).
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ddpm_jax.diffusion.betas import BETAS, rescale_zero_terminal_snr
from ddpm_jax.diffusion.process import Process, Start, root


def _floats(*values):
    return tuple(jnp.asarray(value, float) for value in values)


def _zeros(t):
    return jnp.zeros_like(t, float)


def _ones(t):
    return jnp.ones_like(t, float)


def _identity(t):
    return jnp.asarray(t, float)


def _exp_of(log_f, t):
    return jnp.exp(log_f(t))


def _scaled_log_of(scale, f, t):
    return scale * jnp.log(f(t))


def _scaled(scale, t):
    return scale * t


def _variance_preserving_sigma(log_alpha, t):
    return root(-jnp.expm1(2 * log_alpha(t)))


def _variance_preserving_log_alpha(log_snr):
    return -0.5 * jax.nn.softplus(-log_snr)


# ------------------------------------------------------------------------------------------------ tables of T steps


def _position(num_steps, t):
    """T t, snapped to the integer within 1e-3 of it (float32 has t = n/T only to 1e-7). The derivative stays T."""
    position = num_steps * jnp.asarray(t, float)
    nearest = jnp.round(position)
    position += jax.lax.stop_gradient(jnp.where(jnp.abs(nearest - position) < 1e-3, nearest - position, 0.0))
    return jnp.where((position >= 0) & (position <= num_steps), position, jnp.nan)


def _table_interval(table, t):
    """Where T t stands in table [T + 1]: the entry before it, the fraction of the way to the next, log_alpha in between, and
    whether the next is -inf, in which case alpha is linear and log_alpha is not to be used. Half open to the left."""
    position = _position(table.shape[0] - 1, t)
    lower = jnp.clip(jnp.ceil(jnp.nan_to_num(position)).astype(int) - 1, 0, table.shape[0] - 2)
    low, high, fraction = table[lower], table[lower + 1], position - lower
    ends = jnp.isneginf(high)
    return low, fraction, (1 - fraction) * low + fraction * jnp.where(ends, 0.0, high), ends


def _table_log_alpha(table, t):
    low, fraction, log_alpha, ends = _table_interval(table, t)
    return jnp.where(ends, low + jnp.log1p(-jnp.where(ends, fraction, 0.0)), log_alpha)


def _table_alpha(table, t):
    low, fraction, log_alpha, ends = _table_interval(table, t)
    return jnp.where(ends, jnp.exp(low) * (1 - fraction), jnp.exp(log_alpha))


def _table_sigma(table, t):
    _, _, log_alpha, ends = _table_interval(table, t)
    return root(jnp.where(ends, 1 - _table_alpha(table, t) ** 2, -jnp.expm1(2 * log_alpha)))


def _table_inverse(table, log_snr):
    """Beyond the table it goes on in a straight line, to times that the process itself refuses with nan."""
    log_alpha = _variance_preserving_log_alpha(log_snr)
    last, zero_terminal = table.shape[0] - 1, jnp.isneginf(table[-1])
    end = jnp.where(zero_terminal, table[-2] - 1.0, table[-1])
    position = jnp.interp(log_alpha, table.at[-1].set(end)[::-1], jnp.arange(last, -1, -1, dtype=table.dtype))
    position += jnp.maximum(end - log_alpha, 0.0) / (table[-2] - end)
    ends = zero_terminal & (log_alpha < table[-2])
    return jnp.where(ends, last - jnp.exp(jnp.where(ends, log_alpha - table[-2], 0.0)), position) / last


def _table_index(num_steps, t):
    """The index 0..T-1 that networks trained on a table are shown at t = (index + 1) / T."""
    return _position(num_steps, t) - 1


def from_betas(betas: np.ndarray) -> Process:
    """The variance-preserving chain of a beta table [T], as a process on t in [0, 1] with t = n/T (Ho et al. 2020, eq. 4).

    alpha(n/T)^2 is the product of (1 - beta_k) for k = 1..n, summed in logarithms in float64. Prior N(0, I). Raises ValueError,
    naming the index, for a beta outside (0, 1); exactly 1 is legal as the last entry only (zero terminal SNR).
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
        table = jnp.asarray(np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))]), float)
    return Process(
        log_alpha=Partial(_table_log_alpha, table),
        alpha=Partial(_table_alpha, table),
        sigma=Partial(_table_sigma, table),
        inverse_log_snr=Partial(_table_inverse, table),
        time_input=Partial(_table_index, len(betas)),
        t_min=Start(*_floats(*[1 / len(betas)] * 3)),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(1.0),
        num_steps=len(betas),
    )


def _of_table(make_betas):
    """The process of a beta table, constructed by the table's parameters and `zero_terminal_snr`."""

    @functools.wraps(make_betas)
    def process(*, zero_terminal_snr=False, **parameters):
        betas = make_betas(**parameters)
        return from_betas(rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas)

    own = inspect.Parameter("zero_terminal_snr", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    signature = inspect.signature(make_betas)
    process.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own], return_annotation=Process)
    return process


# ------------------------------------------------------------------------------------------------ continuous time


def _vp_log_alpha(beta_min, beta_max, t):
    return -0.25 * (beta_max - beta_min) * t**2 - 0.5 * beta_min * t


def _vp_time(beta_min, beta_max, log_alpha):
    """t of _vp_log_alpha: the root of the quadratic, in the form that is exact for small t too."""
    return -4 * log_alpha / (beta_min + jnp.sqrt(beta_min**2 - 4 * (beta_max - beta_min) * log_alpha))


def _vp_inverse(beta_min, beta_max, log_snr):
    return _vp_time(beta_min, beta_max, _variance_preserving_log_alpha(log_snr))


def vp(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """beta(t) = beta_min + t (beta_max - beta_min), log alpha = -1/2 int beta, sigma^2 = 1 - alpha^2; t in [0, 1].

    Score SDE (Song et al. 2021), eq. 11 and 32-33: f = -beta/2, g^2 = beta. Prior N(0, I).
    """
    log_alpha = Partial(_vp_log_alpha, *_floats(beta_min, beta_max))
    return Process(
        log_alpha=log_alpha,
        alpha=Partial(_exp_of, log_alpha),
        sigma=Partial(_variance_preserving_sigma, log_alpha),
        inverse_log_snr=Partial(_vp_inverse, *_floats(beta_min, beta_max)),
        time_input=Partial(_scaled, 999.0),
        t_min=Start(*_floats(1e-5, 1e-3, 1e-5)),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(1.0),
    )


def _sub_vp_sigma(log_alpha, t):
    return -jnp.expm1(2 * log_alpha(t))


def _sub_vp_inverse(beta_min, beta_max, log_snr):
    """SNR^(1/2) = alpha / (1 - alpha^2) = 1 / (2 sinh(-log alpha))."""
    return _vp_time(beta_min, beta_max, -jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))


def sub_vp(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """alpha of `vp`, sigma = 1 - alpha^2 (score SDE, eq. 14): g^2 = beta (1 - alpha^4). Prior N(0, sigma(1)^2 I)."""
    log_alpha = Partial(_vp_log_alpha, *_floats(beta_min, beta_max))
    sigma = Partial(_sub_vp_sigma, log_alpha)
    return Process(
        log_alpha=log_alpha,
        alpha=Partial(_exp_of, log_alpha),
        sigma=sigma,
        inverse_log_snr=Partial(_sub_vp_inverse, *_floats(beta_min, beta_max)),
        time_input=Partial(_scaled, 999.0),
        t_min=Start(*_floats(1e-5, 1e-3, 1e-5)),
        t_max=jnp.asarray(1.0),
        prior_std=sigma(1.0),
    )


def _sine(slope, offset, t):
    return jnp.sin(slope * t + offset)


def _mirrored(f, t):
    return f(1 - jnp.asarray(t, float))


def _cosine_inverse(slope, offset, log_snr):
    return (jnp.arctan(jnp.exp(-0.5 * log_snr)) - offset) / slope


def continuous_cosine(*, log_snr_limit: float = 20.0) -> Process:
    """log_snr = -2 log tan(a t + b), alpha^2 + sigma^2 = 1, from log_snr_limit at t = 0 to -log_snr_limit at t = 1.

    The cosine schedule in continuous time (Salimans & Ho 2022; Kingma & Gao 2023, appendix E). Written with the sine of
    a (1 - t) + b for alpha, which keeps its digits near t = 1. Prior N(0, I).
    """
    offset = jnp.arctan(jnp.exp(-0.5 * jnp.asarray(log_snr_limit, float)))
    slope = 0.5 * jnp.pi - 2 * offset
    sigma = Partial(_sine, slope, offset)
    alpha = Partial(_mirrored, sigma)
    return Process(
        log_alpha=Partial(_scaled_log_of, 1.0, alpha),
        alpha=alpha,
        sigma=sigma,
        inverse_log_snr=Partial(_cosine_inverse, slope, offset),
        time_input=Partial(_scaled, 999.0),
        t_min=Start(*_floats(0.0, 0.0, 0.0)),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(1.0),
    )


def _geometric(low, high, t):
    return low * (high / low) ** t


def _geometric_inverse(low, high, log_snr):
    return (-0.5 * log_snr - jnp.log(low)) / jnp.log(high / low)


def ve(*, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in [0, 1] (score SDE, eq. 9 and appendix C).

    g^2 = 2 sigma^2 log(sigma_max / sigma_min). Prior N(0, sigma_max^2 I).
    """
    sigma = Partial(_geometric, *_floats(sigma_min, sigma_max))
    return Process(
        log_alpha=Partial(_zeros),
        alpha=Partial(_ones),
        sigma=sigma,
        inverse_log_snr=Partial(_geometric_inverse, *_floats(sigma_min, sigma_max)),
        time_input=Partial(_scaled_log_of, 1.0, sigma),
        t_min=Start(*_floats(1e-5, 1e-5, 1e-5)),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(sigma_max, float),
    )


def _ladder(low, high, steps, t):
    return _geometric(low, high, (_position(steps, t) - 1) / (steps - 1))


def _ladder_inverse(low, high, steps, log_snr):
    return (_geometric_inverse(low, high, log_snr) * (steps - 1) + 1) / steps


def ncsn(*, steps: int = 232, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """alpha = 1 and L = steps levels, sigma(n/L) geometric from sigma_min at n = 1 to sigma_max at n = L.

    NCSN (Song & Ermon 2019): L = 10, 0.01 to 1. NCSNv2 (Song & Ermon 2020) on CIFAR-10: L = 232, 0.01 to 50. The network is
    shown n - 1. Prior N(0, sigma_max^2 I). A table: `num_steps` is L, and L is 2 or more.
    """
    if steps < 2:
        raise ValueError(f"a ladder needs at least 2 levels, found steps = {steps}")
    sigma = Partial(_ladder, *_floats(sigma_min, sigma_max), steps)
    return Process(
        log_alpha=Partial(_zeros),
        alpha=Partial(_ones),
        sigma=sigma,
        inverse_log_snr=Partial(_ladder_inverse, *_floats(sigma_min, sigma_max), steps),
        time_input=Partial(_table_index, steps),
        t_min=Start(*_floats(*[1 / steps] * 3)),
        t_max=jnp.asarray(1.0),
        prior_std=jnp.asarray(sigma_max, float),
        num_steps=steps,
    )


def _exp_half_negative(log_snr):
    return jnp.exp(-0.5 * log_snr)


def edm(*, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """alpha = 1, sigma = t (Karras et al. 2022): g^2 = 2 t. t from sigma_min to sigma_max. Prior N(0, sigma_max^2 I)."""
    return Process(
        log_alpha=Partial(_zeros),
        alpha=Partial(_ones),
        sigma=Partial(_identity),
        inverse_log_snr=Partial(_exp_half_negative),
        time_input=Partial(_scaled_log_of, 0.25, Partial(_identity)),
        t_min=Start(*_floats(sigma_min, sigma_min, sigma_min)),
        t_max=jnp.asarray(sigma_max, float),
        prior_std=jnp.asarray(sigma_max, float),
    )


def _log_one_minus(t):
    return jnp.log1p(-jnp.asarray(t, float))


def _sigmoid_half_negative(log_snr):
    return jax.nn.sigmoid(-0.5 * log_snr)


def rectified_flow(*, t_max: float = 1 - 1e-5) -> Process:
    """alpha = 1 - t, sigma = t (Liu et al. 2023; Lipman et al. 2023 with time reversed). Prior N(0, I).

    t ends at 1 - 1e-5, where log-SNR is -23, so that the SDE stays finite. With t_max = 1 alpha is 0 there.
    """
    return Process(
        log_alpha=Partial(_log_one_minus),
        alpha=Partial(_mirrored, Partial(_identity)),
        sigma=Partial(_identity),
        inverse_log_snr=Partial(_sigmoid_half_negative),
        time_input=Partial(_scaled, 999.0),
        t_min=Start(*_floats(1e-5, 1e-3, 1e-5)),
        t_max=jnp.asarray(t_max, float),
        prior_std=jnp.asarray(1.0),
    )


def _cos(t):
    return jnp.cos(jnp.asarray(t, float))


def _sin(t):
    return jnp.sin(jnp.asarray(t, float))


def _arctan_of_ratio(log_snr):
    return jnp.arctan(jnp.exp(-0.5 * log_snr))


def trig_flow(*, ratio_max: float = 160.0) -> Process:
    """alpha = cos t, sigma = sin t, t from 0 to arctan(ratio_max) (Lu & Song 2025, TrigFlow): f = -tan t, g^2 = 2 tan t.

    Its velocity is v. ratio_max: sigma / alpha at the end; 160 is sigma_max / sigma_data of `edm`. Prior N(0, I).
    """
    alpha = Partial(_cos)
    t_max = jnp.arctan(jnp.asarray(ratio_max, float))
    return Process(
        log_alpha=Partial(_scaled_log_of, 1.0, alpha),
        alpha=alpha,
        sigma=Partial(_sin),
        inverse_log_snr=Partial(_arctan_of_ratio),
        time_input=Partial(_scaled, 999.0 / t_max),
        t_min=Start(*_floats(1e-5, 1e-3, 1e-5)),
        t_max=t_max,
        prior_std=jnp.asarray(1.0),
    )


PROCESSES: dict[str, Callable[..., Process]] = {name: _of_table(betas) for name, betas in BETAS.items()} | {
    "vp": vp,
    "sub_vp": sub_vp,
    "continuous_cosine": continuous_cosine,
    "ve": ve,
    "ncsn": ncsn,
    "edm": edm,
    "rectified_flow": rectified_flow,
    "trig_flow": trig_flow,
}
