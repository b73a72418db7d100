"""Losses against the posterior variance of a Gaussian and the papers' formulas, and types against each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.construct import construct
from ddpm_jax.diffusion.bound import BOUND_VARIANCES, bits, bound_term, density
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS, check_chain, denoising_loss, edm, min_snr, p2, sigmoid
from ddpm_jax.diffusion.oracle import denoiser, gaussian
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction
from ddpm_jax.diffusion.process import add_noise, derivative
from ddpm_jax.diffusion.processes import PROCESSES

ALL = {name: make() for name, make in PREDICTIONS.items()}
MEAN, STD = 0.3, 0.5


def published(a, s, a_slope, s_slope, rate):
    """Each weighting's loss as its paper has it, where eps is off by a, x0 by -s: (weighting, loss). rate: -d log_snr/dt."""
    eps, x0, snr = a**2, s**2, (a / s) ** 2
    integrand = np.where(a == 0, 0, eps * np.where(a == 0, 0, rate))
    with np.errstate(divide="ignore"):
        log_snr = np.log(snr)
    return {
        "simple": (WEIGHTINGS["simple"](), eps),
        "snr": (WEIGHTINGS["snr"](), snr * x0),
        "ncsn": (WEIGHTINGS["ncsn"](), s**2 * (a / s) ** 2),  # of the score, off by a / s
        "x0": (WEIGHTINGS["x0"](), x0),
        "truncated_snr": (WEIGHTINGS["truncated_snr"](), np.maximum(snr, 1) * x0),
        "v": (WEIGHTINGS["v"](), (a * a + s * s) ** 2),  # v = a eps - s x0
        "min_snr": (min_snr(gamma=2.0), np.minimum(snr, 2) * x0),
        "p2": (p2(k=0.5, power=0.7), eps / (0.5 + snr) ** 0.7),
        "sigmoid": (sigmoid(bias=1.3), integrand / (1 + np.exp(log_snr - 1.3))),
        "likelihood": (WEIGHTINGS["likelihood"](), integrand),
        "velocity": (WEIGHTINGS["velocity"](), (a * s_slope - s * a_slope) ** 2),  # u = a' x0 + s' eps
        "edm": (edm(sigma_data=0.7), (s**2 + 0.49 * a**2) / (0.49 * s**2) * x0),  # for a = 1
    }


WEIGHTS = [weighting for weighting, _ in published(*np.ones(5)).values()]


def all_weights(process, t):
    return jnp.stack([weighting(process, t) for weighting in WEIGHTS])


@jax.jit
def coefficients(process, t):
    slopes = [derivative(f, t) for f in (process.alpha, process.sigma, process.log_snr)]
    return process.alpha(t), process.sigma(t), slopes[0], slopes[1], -slopes[2]


def least_losses(process, t):
    """Those of `published` times E e^2 = v / (alpha^2 v + sigma^2), v = std^2."""
    a, s, *others = map(np.asarray, coefficients(process, t))
    weights = np.stack([loss for _, loss in published(a, s, *others).values()])
    return weights * STD**2 / (a**2 * STD**2 + s**2)


@jax.jit
def all_losses(process, x0, eps, t, shift):
    """[weighting, type, B] of networks that stand for one denoiser, the exact one with x0 shifted; and slopes in the shift."""
    x = add_noise(process, x0, eps, t)
    exact = denoiser(gaussian([MEAN], [[STD**2]]), process)(x, t)

    def losses(shift):
        moved = exact.x0 + shift * jnp.sin(x)
        noise = exact.eps - (process.alpha(t) / process.sigma(t))[:, None] * (moved - exact.x0)

        def loss(prediction):
            def network(shown, time):
                chex.assert_trees_all_equal_shapes((shown, time), (x, t))
                return prediction.target(process, moved, noise, t)

            return denoising_loss(network, process, prediction, all_weights, x0, eps, t)

        return jnp.stack([loss(prediction) for prediction in ALL.values()], 1)

    return jax.jvp(losses, (shift,), (1.0,))


def test_losses_of_every_weighting_and_type(process, times):
    """The exact denoiser's is the published weight of E e^2, its error being linear in x_0 and eps, so that mean +- std and +-1
    stand for the Gaussians. Of any denoiser, all types have one loss and one gradient. Up to alpha = 0."""
    shape = (4, len(times))
    x0 = np.broadcast_to(MEAN + STD * np.array([[1], [-1], [1], [-1]]), shape).reshape(-1, 1)
    eps = np.broadcast_to(np.array([[1.0], [1], [-1], [-1]]), shape).reshape(-1, 1)
    t = np.broadcast_to(times, shape).ravel()
    exact, inexact = (jax.tree.map(np.asarray, all_losses(process, x0, eps, t, shift)) for shift in (0.0, 0.2))
    to_zero = process.alpha(process.t_max) == 0
    usable = np.array([not (to_zero and prediction.needs_alpha) for prediction in ALL.values()])
    found = exact[0][:, usable].reshape(len(WEIGHTS), -1, *shape).mean(2)
    expected = np.broadcast_to(least_losses(process, times)[:, None], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
    for found in inexact:
        assert (found != 0).any()
        own = list(ALL).index("x0")
        of_x0 = np.broadcast_to(found[:, own : own + 1], found[:, usable].shape)
        np.testing.assert_allclose(found[:, usable], of_x0, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_has_its_formula(name):
    """What a weighting ought to be only its definition says."""
    assert name in published(*np.ones(5)), f"add {name} to `published` above, with the loss as its paper or its author has it"


LOSS_KNOBS = {"weighting": WEIGHTINGS["simple"](), "variance": "learned_range"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_denoiser_is_where_every_loss_is_least(name, x64):  # noqa: ARG001
    """The mean loss of a network that is shifted from the exact output, by a constant or by a multiple of x, has its least
    value without: slope 0, and curved upwards. On a chain, at steps without the decoder of pixels; for every type.

    Losses are quadratic in x_0 and eps where the network is affine, so mean +- std and +-1 stand for the Gaussians.
    """
    process = PROCESSES["cosine"](steps=20)
    loss = construct(LOSSES, LOSS_KNOBS | {"name": name})
    signs = jnp.array([-1.0, 1.0])
    x0, eps, n = (jnp.ravel(a) for a in jnp.meshgrid(MEAN + STD * signs, signs, jnp.arange(2, 20)))
    x0, eps, t = x0[:, None], eps[:, None], n / 20
    exact = denoiser(gaussian([MEAN], [[STD**2]]), process)(add_noise(process, x0, eps, t), t)

    def mean(shift, prediction):
        def network(shown, time):  # noqa: ARG001
            output = prediction.target(process, exact.x0, exact.eps, t) + shift[0] + shift[1] * shown
            return jnp.concatenate([output, 0 * output], -1) if loss.learns else output

        return loss.of(network, process, prediction, x0, eps, t, density).mean()

    found = jax.jit(lambda shift: {kind: (jax.grad(mean)(shift, of), jax.hessian(mean)(shift, of)) for kind, of in ALL.items()})
    for kind, (slope, curvature) in found(jnp.zeros(2)).items():
        scale = jnp.sqrt(jnp.diag(curvature))
        assert (jnp.linalg.eigvalsh(curvature) > 0).all(), (name, kind)
        assert (jnp.abs(slope) < 1e-9 * scale).all(), (name, kind, slope, scale)


def test_papers_weights_of_their_own_network():
    """min-SNR of a v error and of an eps error, SNR + 1 of an x0 error, where alpha^2 + sigma^2 = 1."""
    process, t = PROCESSES["cosine"](), jnp.array([0.1, 0.5, 0.9])
    snr = np.exp(process.log_snr(t))
    weight = WEIGHTINGS["min_snr"]()(process, t)
    np.testing.assert_allclose(weight / ALL["v"].scale(process, t), np.minimum(snr, 5) / (snr + 1), rtol=1e-5)
    np.testing.assert_allclose(weight / ALL["eps"].scale(process, t), np.minimum(snr, 5) / snr, rtol=1e-5)
    np.testing.assert_allclose(WEIGHTINGS["v"]()(process, t), (snr + 1) * process.sigma(t) ** 2, rtol=1e-5)


@pytest.mark.thorough
def test_weights_are_finite_at_both_ends(make_process):
    """In float32, as multiples of each usable type's own error too."""
    process = make_process()
    t = jnp.stack([process.t_min.training, process.t_max])
    usable = [prediction for prediction in ALL.values() if process.alpha(process.t_max) > 0 or not prediction.needs_alpha]
    weights = jax.jit(all_weights)(process, t)
    assert jnp.isfinite(weights).all() and (weights >= 0).all()
    for prediction in usable:
        assert jnp.isfinite(weights / prediction.scale(process, t)).all()


def test_the_loss_is_a_mean_over_elements():
    """So images of any size weigh alike. One loss per example; the network sees the noised x and the time that it knows."""
    process, t = PROCESSES["linear"](), jnp.array([0.5, 1.0])
    x0, eps = jnp.ones((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)

    def network(x, time):
        chex.assert_trees_all_close(time, jnp.array([499.0, 999.0]))
        return x

    losses = denoising_loss(network, process, ALL["x0"], WEIGHTINGS["x0"](), x0, eps, t)
    x = process.alpha(t) + 0.5 * process.sigma(t)
    chex.assert_trees_all_close(losses, (1 - x) ** 2, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ the bound


def test_bound_losses_are_made_of_the_bounds_terms():
    """hybrid = weighted error + T / 1000 bits of L_t, vlb = T bits of L_t: on the first step, one amid, and the last."""
    steps = 20
    process, t = PROCESSES["cosine"](steps=steps), jnp.array([1, 7, 20]) / steps
    random = np.random.default_rng(0)
    x0, eps, output, raw = (jnp.asarray(random.uniform(-1, 1, (3, 2, 2, 1)), jnp.float32) for _ in range(4))

    @jax.jit
    def found_and_expected():
        seen, x = [], add_noise(process, x0, eps, t)

        def of(loss, *decoder):
            def network(*inputs):
                seen.append(inputs)
                return jnp.concatenate([output, raw], -1) if loss.learns else output

            return loss.of(network, process, ALL["x0"], x0, eps, t, *decoder)

        def terms(variance, *decoder):
            guess = Prediction(output, output, variance_output=raw)
            return bits(bound_term(process, x0, guess, t, t - 1 / steps, BOUND_VARIANCES[variance], *decoder), (4,))

        fixed = LOSSES["vlb"](variance="fixed_large")
        pairs = [(of(fixed, *decoder), 20 * terms("fixed_large", *decoder)) for decoder in ((), (density,))]
        error = jnp.square(output - x0).mean((1, 2, 3)) * jnp.minimum(jnp.exp(process.log_snr(t)), 5)
        for variance, decoder in (("learned", ()), ("learned_range", (density,))):
            hybrid = LOSSES["hybrid"](weighting=min_snr(), variance=variance)
            pairs.append((of(hybrid, *decoder), error + 0.02 * terms(variance, *decoder)))
            pairs.append((of(LOSSES["vlb"](variance=variance), *decoder), 20 * terms(variance, *decoder)))
        return pairs, seen, x

    pairs, seen, x = found_and_expected()
    for found, expected in pairs:
        chex.assert_trees_all_close(found, expected, rtol=1e-4)
    for shown, time in seen:
        chex.assert_trees_all_close((shown, time), (x, jnp.array([0.0, 6.0, 19.0])), rtol=1e-5)
    for variance in ("learned", "learned_range"):
        made = LOSSES["hybrid"](weighting=min_snr(), variance=variance), LOSSES["vlb"](variance=variance)
        assert [loss.learns for loss in made] == [variance] * 2
    assert LOSSES["vlb"](variance="fixed_large").learns == ""


@jax.jit
def bound_slopes(process, x0, eps, t, output, raw):
    """The slopes of both in the network's two outputs, and those of the error and the bound alone."""

    def of(loss):
        def total(output, raw):
            return loss.of(lambda *_: jnp.concatenate([output, raw], -1), process, ALL["eps"], x0, eps, t).sum()

        return jax.grad(total, (0, 1))(output, raw)

    def error(output):
        return denoising_loss(lambda *_: output, process, ALL["eps"], WEIGHTINGS["simple"](), x0, eps, t).sum()

    knobs = {"variance": "learned_range"}
    return of(LOSSES["hybrid"](weighting=WEIGHTINGS["simple"](), **knobs)), of(LOSSES["vlb"](**knobs)), jax.grad(error)(output)


def test_in_the_hybrid_loss_the_bound_teaches_the_variance_alone():
    """Both on the first step and later, every slope finite; x0_hat far outside of [-1, 1] still has one: it is not clipped."""
    process, t = PROCESSES["linear"](), jnp.array([1, 2, 700, 1000]) / 1000
    random = np.random.default_rng(1)
    x0, eps, output, raw = (jnp.asarray(random.uniform(-1, 1, (4, 3)), jnp.float32) for _ in range(4))
    hybrid, vlb, error = bound_slopes(process, x0, eps, t, output, raw)
    chex.assert_trees_all_close(hybrid[0], error, rtol=1e-5)
    chex.assert_trees_all_close(hybrid[1], vlb[1] / 1000, rtol=1e-4, atol=1e-9)  # T / 1000 = 1, and T
    assert all(jnp.isfinite(slope).all() and (slope != 0).all() for slope in (*hybrid, *vlb))


@pytest.mark.thorough
def test_the_hybrid_loss_is_least_at_the_true_variance():
    """Data N(0, I) and the exact mean: the reverse step's variance is large_variance but for the first steps, which is raw = 1
    of learned_range; data that are one point: raw = -1. The slopes say so (Nichol & Dhariwal 2021, section 3.1)."""
    process, t = PROCESSES["linear"](), jnp.full(4000, 0.5)
    eps = jax.random.normal(jax.random.key(0), (4000, 1))
    vlb = LOSSES["vlb"](variance="learned_range")
    for x0, exact in ((jax.random.normal(jax.random.key(1), (4000, 1)), 1.0), (jnp.zeros((4000, 1)), -1.0)):
        x = add_noise(process, x0, eps, t)
        noise = process.sigma(0.5) * x if exact > 0 else eps  # E[eps | x]

        def slope(raw, x0=x0, noise=noise):
            def total(raw):
                output = jnp.concatenate([noise, jnp.full_like(noise, raw)], -1)
                return vlb.of(lambda *_: output, process, ALL["eps"], x0, eps, t).mean()

            return jax.jit(jax.grad(total))(raw)

        assert slope(exact - 20) < 0 < slope(exact + 20)


def test_losses_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="hybrid loss trains the variance, and fixed_small is fixed"):
        LOSSES["hybrid"](weighting=WEIGHTINGS["simple"](), variance="fixed_small")
    for name in ("vp", "ncsn"):
        with pytest.raises(ValueError, match="a chain of steps that ends in the data.*take a beta table"):
            check_chain(PROCESSES[name](), LOSSES["vlb"](variance="fixed_small"))
        check_chain(PROCESSES[name](), LOSSES["denoising"](weighting=WEIGHTINGS["x0"]()))
    check_chain(PROCESSES["cosine"](), LOSSES["vlb"](variance="learned"))
