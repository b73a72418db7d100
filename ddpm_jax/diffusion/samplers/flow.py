"""Samplers of the probability-flow ODE, equation (7) of `process`, without memory; churn."""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion import adaptive, probability_flow
from ddpm_jax.diffusion.process import derivative, expand, root, transition
from ddpm_jax.diffusion.samplers.core import Sampler, Static, half_log_snr, no_memory, time_at


def _euler_step(denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    slope = derivative(process.alpha, at.t) * prediction.x0 + derivative(process.sigma, at.t) * prediction.eps
    x = x + (at.s - at.t) * slope
    return x, x, memory


def euler(
    *, s_churn: float = 0.0, s_min: float = 0.0, s_max: float = jnp.inf, s_noise: float = 1.0, published: bool = False
) -> Sampler:
    """x_s = x_t + (s - t) (alpha' x0_hat + sigma' eps_hat): Euler's method in t for the probability-flow ODE.

    Equation (7) of `process`; Song et al. 2021 (score SDE), eq. 13. On rectified flow and EDM it is `ddim`. s_churn and the
    others: see `churned`. Evaluations per step: 1.
    """
    sampler = Sampler(Partial(no_memory), Partial(_euler_step), noise_free=True)
    return _with_churn(sampler, s_churn, s_min, s_max, s_noise, published)


def _heun_step(denoise, process, x, memory, at):
    d_alpha, d_sigma = process.alpha(at.s) - process.alpha(at.t), process.sigma(at.s) - process.sigma(at.t)
    here = denoise(x, at.t)
    euler = x + d_alpha * here.x0 + d_sigma * here.eps
    at_end = process.sigma(at.s) == 0  # nothing can be denoised there, and Euler's step is the end
    there = denoise(euler, jnp.where(at_end, at.t, at.s))
    heun = x + d_alpha * 0.5 * (here.x0 + there.x0) + d_sigma * 0.5 * (here.eps + there.eps)
    x = jnp.where(at_end, euler, heun)
    return x, x, memory


def heun(
    *, s_churn: float = 0.0, s_min: float = 0.0, s_max: float = jnp.inf, s_noise: float = 1.0, published: bool = False
) -> Sampler:
    """The trapezoidal rule for dx = x0 d alpha + eps d sigma, equation (7) of `process`, after a step of Euler's.

    For alpha = 1 and for rectified flow Karras et al. 2022, algorithm 1, and with s_churn (see `churned`) algorithm 2; written
    with differences of alpha and sigma it needs no derivative of a table. Evaluations per step: 2, also for a last step to
    sigma = 0, which is Euler's: `last="denoise"` from the time before costs 1 and gives the same.
    """
    sampler = Sampler(Partial(no_memory), Partial(_heun_step), noise_free=True, order=2)
    return _with_churn(sampler, s_churn, s_min, s_max, s_noise, published)


def _with_churn(sampler, s_churn, *knobs):
    return sampler if isinstance(s_churn, float | int) and s_churn == 0 else churned(sampler, s_churn, *knobs)


def _churned_step(inner, published, s_churn, s_min, s_max, s_noise, denoise, process, x, memory, at):
    half = half_log_snr(process, at.t)
    z = jnp.exp(-half)
    share = s_churn / (at.n + published.value)
    gamma = jnp.where((z >= s_min) & (z <= s_max), jnp.minimum(share, jnp.sqrt(2.0) - 1), 0.0)
    raised = time_at(process, half - jnp.log1p(gamma))
    if process.num_steps:
        raised = jnp.round(raised * process.num_steps) / process.num_steps
    latest = jnp.inf if published.value and not process.num_steps else process.t_max
    raised = jnp.clip(jnp.where(gamma == 0, at.t, raised), at.t, latest)
    a, variance = transition(process, raised, at.t)
    x = a * x + s_noise * root(jnp.maximum(variance, 0.0)) * at.noise(0)
    return inner(denoise, process, x, memory, at._replace(t=raised, noise=lambda j: at.noise(j + 1)))


def churned(
    sampler: Sampler,
    s_churn: float,
    s_min: float = 0.0,
    s_max: float = jnp.inf,
    s_noise: float = 1.0,
    published: bool = False,
) -> Sampler:
    """Each step of a sampler without memory from a time raised from t by fresh noise (Karras et al. 2022, algorithm 2).

    z = sigma / alpha goes to (1 + gamma) z, gamma = min(s_churn / n, sqrt 2 - 1) where s_min <= z <= s_max and else 0, of n
    transitions; not beyond t_max; on a table to the nearest step. published: as in their code, of n + 1, with the denoising at
    the end, which is not churned here (nor there, where s_min is above the last z); and beyond t_max, but on tables. The noise
    is that of the transition, equation (3) of `process`, times s_noise, which their experiments have at 1.003 to 1.007. Bias:
    the sampler's, and s_noise^2 - 1 of what is added. Evaluations: the sampler's.
    """
    knobs = Static(published), *(jnp.asarray(knob, float) for knob in (s_churn, s_min, s_max, s_noise))
    return Sampler(
        sampler.init,
        Partial(_churned_step, sampler.step, *knobs),
        order=sampler.order,
        needs_alpha="churn raises sigma / alpha, which is infinite where alpha = 0",
    )


def _adaptive_step(rtol, atol, max_evaluations, denoise, process, x, memory, at):  # noqa: ARG001 - it evaluates in a loop
    def solve(denoise):
        costs = []

        def field(u, w):
            def costed(x, t):
                prediction = denoise(x, t)
                costs.append(prediction.evaluations)
                return prediction

            return probability_flow.slope(costed, process, w, probability_flow.time(process, u))

        ends = probability_flow.position(process, at.t), probability_flow.position(process, at.s)
        start = x / probability_flow.scale(process, at.t)
        solved = adaptive.solve(field, start, *ends, rtol=rtol, atol=atol, max_evaluations=max_evaluations.value)
        reached = jnp.where(expand(solved.reached, x), solved.x, jnp.nan)
        return probability_flow.scale(process, at.s) * reached, costs[0] * solved.evaluations.max()

    x = at.in_loop(solve)
    return x, x, memory


def adaptive_ode(*, rtol: float = 1e-5, atol: float = 1e-5, max_evaluations: int = 10_000) -> Sampler:
    """The probability-flow ODE from t to s to a tolerance, by Dormand and Prince's pair with steps of each sample's own.

    As Song et al. 2021 (score SDE), section 4.3, in the coordinates of `probability_flow`; needs diffrax. Every transition of
    the grid is solved anew, so a grid of two points is enough. A sample that would take more than max_evaluations for one is
    nan. Evaluations: those of the sample of the batch that takes the most.
    """
    return Sampler(
        Partial(no_memory),
        Partial(_adaptive_step, jnp.asarray(rtol, float), jnp.asarray(atol, float), Static(max_evaluations)),
        noise_free=True,
        order=0,
        needs_sigma="log-SNR has no end where sigma = 0",
    )
