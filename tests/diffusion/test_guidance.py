"""Guidance on mixtures of Gaussians, where the class posterior, the conditional denoiser and the tilted score are exact."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import log_snr
from ddpm_jax.diffusion.guidance import batched_pair, classifier_free, classifier_guidance, dynamic_thresholding, mean_shift
from ddpm_jax.diffusion.posterior import VARIANCES, posterior_mean
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction, add_score
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import At, adaptive_ode, ancestral, ddim, heun
from ddpm_jax.diffusion.transforms import clipped, clipped_x0

NAMES = ("vp", "sub_vp", "ve", "edm", "cosine")
X = np.random.default_rng(0).normal(size=(6, 2))
LABELS = np.array([0, 1, 1, 0, 1, 0])


def data():
    means = [[0.5, -0.3], [-0.4, 0.2], [0.1, 0.9]]
    covariances = [[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.2, -0.15], [-0.15, 0.2]]]
    return oracle.mixture(means, covariances, [0.2, 0.5, 0.3], [0, 1, 0])


def times_of(process):
    """One for each of X, over the whole span."""
    return process.inverse_log_snr(jnp.linspace(6.0, -6.0, 6))


def spoken(process, label=None):
    """The exact denoiser with all that a wrapper is to keep."""
    return lambda x, t: oracle.denoiser(data(), process, label)(x, t)._replace(variance_output=0.3 * x, evaluations=7)


def log_prob_of(data, process, label):
    def log_prob(x, t):
        labels = jnp.broadcast_to(label, x.shape[:1])[:, None]
        return jnp.take_along_axis(oracle.class_log_posterior(data, process, x, t, 2), labels, 1)[:, 0]

    return log_prob


# ------------------------------------------------------------------------------------------------ by a classifier


@pytest.mark.parametrize("name", NAMES)
def test_with_the_exact_classifier_the_score_form_is_the_conditional_denoiser(name, x64):  # noqa: ARG001
    """At w = 1; at w = 0 the unconditional one. To 1e-8, at times from log-SNR 6 to -6, with labels of each example's own.
    The mean shift is the same prediction with the gradient beside it, which only the ancestral sampler looks at."""
    process = PROCESSES[name]()

    @jax.jit
    def predictions(scale, t):
        log_prob = log_prob_of(data(), process, LABELS)
        score, shifted = (
            guide(spoken(process), process, log_prob, scale=scale)(X, t) for guide in (classifier_guidance, mean_shift)
        )
        return score, shifted, spoken(process, LABELS)(X, t), spoken(process)(X, t)

    t = times_of(process)
    guided, shifted, conditional, unconditional = predictions(jnp.ones(6), t)
    chex.assert_trees_all_close(guided, conditional, rtol=1e-8, atol=1e-8)
    chex.assert_trees_all_equal(shifted._replace(shift=None), guided)
    chex.assert_trees_all_close(process.sigma(t)[:, None] * shifted.shift, unconditional.eps - conditional.eps, atol=1e-8)
    some = predictions(jnp.array([1.0, 0.0] * 3), t)[0]  # a scale for each example
    chex.assert_trees_all_close(some.x0[::2], conditional.x0[::2], rtol=1e-8, atol=1e-8)
    chex.assert_trees_all_close(some.x0[1::2], unconditional.x0[1::2], rtol=1e-12)


@pytest.mark.thorough
def test_the_adaptive_sampler_knows_whose_label_is_whose(x64):  # noqa: ARG001
    """Each sample has steps of its own, and is steered by its own label: to where a hundred steps of Heun bring it."""
    process, keys = PROCESSES["vp"](), sample_keys(0, jnp.arange(6))
    guided = classifier_guidance(spoken(process), process, log_prob_of(data(), process, LABELS), scale=1.0)
    drawn = {}
    for name, sampler, steps in (("adaptive", adaptive_ode(), 2), ("heun", heun(), 100)):
        times = log_snr(process, steps=steps)
        drawn[name] = sample(sampler, guided, process, times, keys, (2,), last="stop").x
    chex.assert_trees_all_close(drawn["adaptive"], drawn["heun"], atol=2e-3)


@pytest.mark.parametrize("guide", [classifier_guidance, mean_shift])
def test_where_alpha_is_0_a_classifier_says_nothing(guide):
    """Not even one that is wrong; and gradients stay finite."""
    process, x = PROCESSES["linear"](zero_terminal_snr=True), jnp.ones((3, 2))

    def x0(scale, x):
        denoise, wrong = lambda x, t: Prediction(0.1 * x, x), lambda x, t: -(x**2).sum(1)  # noqa: ARG005
        return guide(denoise, process, wrong, scale=scale)(x, process.t_max).x0

    chex.assert_trees_all_equal(x0(3.0, x), 0.1 * x)
    gradients = jax.jit(jax.grad(lambda *at: x0(*at).sum(), (0, 1)))(3.0, x)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_an_ancestral_step_takes_the_shift_for_the_mean():
    """And not into x0: once, times the variance."""
    process, t, s = PROCESSES["linear"](), jnp.asarray(0.5), jnp.asarray(0.4)
    x, x0, shift = jnp.array([[0.3, -1.0]]), jnp.array([[0.2, 0.5]]), jnp.array([[2.0, -3.0]])
    plain = Prediction(x0, (x - process.alpha(t) * x0) / process.sigma(t))
    shifted = add_score(process, t, plain, shift)._replace(shift=shift)
    for name in ("fixed_small", "fixed_large"):
        at = At(t, s, 0, 1, lambda j: x, None)  # noqa: ARG005
        _, mean, _ = ancestral(variance=name).step(lambda x, t: shifted, process, x, (), at)  # noqa: ARG005
        expected = posterior_mean(process, x, x0, t, s) + VARIANCES[name](process, t, s, None) * shift
        chex.assert_trees_all_close(mean, expected, rtol=1e-5)


@pytest.mark.thorough
def test_an_ancestral_step_adds_variance_times_gradient_to_its_mean(x64):  # noqa: ARG001
    """Dhariwal & Nichol's algorithm 1, from the unguided prediction, with each variance; the noise is as without guidance."""
    process, t, s, noise = PROCESSES["linear"](), jnp.asarray(0.5), jnp.asarray(0.4), jnp.full((6, 2), 0.7)
    denoise = mean_shift(spoken(process), process, log_prob_of(data(), process, LABELS), scale=2.5)

    @jax.jit
    def stepped():
        at = At(t, s, 0, 1, lambda j: noise, None)  # noqa: ARG005
        steps = {name: ancestral(variance=name).step(denoise, process, X, (), at)[:2] for name in VARIANCES}
        plain = posterior_mean(process, X, spoken(process)(X, t).x0, t, s)
        gradient = oracle.score(data(), process, X, t, LABELS) - oracle.score(data(), process, X, t)
        return steps, plain, gradient, {name: variance(process, t, s, 0.3 * X) for name, variance in VARIANCES.items()}

    steps, plain, gradient, variances = stepped()
    for name, (x, mean) in steps.items():
        chex.assert_trees_all_close(mean, plain + variances[name] * 2.5 * gradient, rtol=1e-10)
        chex.assert_trees_all_close(x, mean + jnp.sqrt(variances[name]) * 0.7, rtol=1e-10)


def test_what_sets_x0_anew_refuses_a_mean_shift():
    process = PROCESSES["vp"]()

    def shifted(x, t):  # noqa: ARG001
        return Prediction(x, x, shift=x)

    wrapped = (
        clipped(shifted, process), clipped_x0(shifted, process), dynamic_thresholding(shifted, process, percentile=99.0),
        classifier_free(lambda x, t: (shifted(x, t),) * 2, process, scale=2.0),
        mean_shift(shifted, process, lambda x, t: x.sum(1), scale=1.0),  # noqa: ARG005
    )  # fmt: skip
    for denoise in wrapped:
        with pytest.raises(ValueError, match="a mean shift comes last: clip, threshold and guide first"):
            denoise(jnp.ones((2, 2)), 0.5)


# ------------------------------------------------------------------------------------------------ classifier-free


def exact_pair(process, label=LABELS):
    """The exact predictions; each with a second output and a cost of its own."""
    return lambda x, t: (spoken(process, label)(x, t), spoken(process)(x, t)._replace(variance_output=9.0 * x, evaluations=2))


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_guidance_is_the_score_of_the_tilted_density(name, x64):  # noqa: ARG001
    """eps = -sigma grad [log p(x) + w log p(y | x)], by differentiation of the densities, and x0 makes up x with it."""
    process = PROCESSES[name]()
    t = times_of(process)

    @jax.jit
    def both(scale):
        guided = classifier_free(exact_pair(process), process, scale=scale)(X, t)
        tilted = lambda x: oracle.log_density(data(), process, x, t) + scale * log_prob_of(data(), process, LABELS)(x, t)  # noqa: E731
        return guided, jax.grad(lambda x: tilted(x).sum())(X)

    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    for scale in (-0.5, 0.3, 1.0, 4.0):
        guided, score = both(scale)
        chex.assert_trees_all_close(guided.eps, -sigma * score, rtol=1e-8, atol=1e-8)
        chex.assert_trees_all_close(alpha * guided.x0 + sigma * guided.eps, X, rtol=1e-8, atol=1e-8)


def test_two_gaussians_of_one_covariance(x64):  # noqa: ARG001
    """There guidance is the score of one Gaussian, around alpha (w m_c + (1 - w) m), m the mean of means by class posterior."""
    process, t, w = PROCESSES["vp"](), 0.4, 3.0
    means, covariance, weights = np.array([[0.8, 0.3], [-0.6, -0.5]]), np.array([[0.3, 0.1], [0.1, 0.2]]), np.array([0.3, 0.7])
    data = oracle.mixture(means, [covariance] * 2, weights)
    pair = lambda x, t: (oracle.denoiser(data, process, 1)(x, t), oracle.denoiser(data, process)(x, t))  # noqa: E731
    found = jax.jit(lambda w: classifier_free(pair, process, scale=w)(X, t).eps)(w)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    inverse = np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(2))
    offsets = X[:, None] - alpha * means
    share = weights * np.exp(-0.5 * np.einsum("bkd,de,bke->bk", offsets, inverse, offsets))
    share /= share.sum(1, keepdims=True)
    center = alpha * (w * means[1] + (1 - w) * share @ means)
    chex.assert_trees_all_close(found, sigma * (X - center) @ inverse, rtol=1e-9)


def test_ends_limits_and_the_other_fields(x64):  # noqa: ARG001
    """Bit for bit the conditional prediction at w = 1 and outside of the interval, the unconditional one at w = 0."""
    process = PROCESSES["linear"](zero_terminal_snr=True)
    t = jnp.array([0.02, 0.1, 0.3, 0.5, 0.8, 1.0])  # sigma / alpha from 0.05 to infinity
    conditional, unconditional = jax.jit(exact_pair(process))(X, t)
    guided = jax.jit(lambda **knobs: classifier_free(lambda x, t: (conditional, unconditional), process, **knobs)(X, t))  # noqa: ARG005
    assert (conditional.evaluations, unconditional.evaluations) == (7, 2)
    chex.assert_trees_all_equal(guided(scale=1.0), conditional._replace(evaluations=9))
    chex.assert_trees_all_equal(guided(scale=0.0)[:2], unconditional[:2])
    full = guided(scale=3.0)
    chex.assert_trees_all_close(full.x0, 3 * conditional.x0 - 2 * unconditional.x0, rtol=1e-12)
    chex.assert_trees_all_equal((full.variance_output, full.evaluations), (conditional.variance_output, 9))
    level = np.asarray(process.sigma(t) / process.alpha(t))
    for low, high in ((0.3, 2.0), (0.0, 2.0), (0.3, np.inf), (float(level[1]) * 0.999, float(level[1]) * 1.001)):
        inside = ((level >= low) & (level <= high))[:, None]
        found = guided(scale=3.0, low=low, high=high)
        for value, guided_value, plain in zip(found[:2], full[:2], conditional[:2], strict=True):
            chex.assert_trees_all_equal(value, np.where(inside, guided_value, plain))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_rescaling_is_in_the_space_of_the_networks_output(name, x64):  # noqa: ARG001
    """phi = 1 gives the guided output the deviation of the conditional one, 0 nothing, between them a mean; per example."""
    process, kind = PROCESSES["sub_vp"](), PREDICTIONS[name]()
    x, t = np.random.default_rng(1).normal(size=(3, 2, 5)), jnp.array([0.1, 0.5, 0.9])

    def pair(x, t):
        outputs = jnp.sin(7 * x), 0.5 * jnp.cos(3 * x) + x
        return tuple(Prediction(*kind.to_x0_eps(process, x, t, output)) for output in outputs)

    @jax.jit
    def guided(phi):
        prediction = classifier_free(pair, process, scale=4.0, rescale=phi, prediction=kind)(x, t)
        plain = classifier_free(pair, process, scale=4.0)(x, t)
        return prediction, plain, kind.target(process, *prediction[:2], t)

    chex.assert_trees_all_close(*guided(0.0)[:2], rtol=1e-12)
    conditional, output = np.sin(7 * x), 4 * np.sin(7 * x) - 3 * (0.5 * np.cos(3 * x) + x)
    ratio = (conditional.reshape(3, -1).std(1) / output.reshape(3, -1).std(1))[:, None, None]
    for phi in (0.3, 1.0):
        prediction, _, found = guided(phi)
        chex.assert_trees_all_close(found, (phi * ratio + 1 - phi) * output, rtol=1e-9, atol=1e-9)
        alpha, sigma = (expanded(f(t)) for f in (process.alpha, process.sigma))
        chex.assert_trees_all_close(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-9, atol=1e-9)


def expanded(coefficient):
    return coefficient[:, None, None]


def test_rescaling_without_deviation_is_finite_and_without_a_type_refused():
    process, x = PROCESSES["vp"](), jnp.ones((2, 3))

    def x0(phi, x, flat):
        flat = [Prediction(part, part) for part in (flat, 2 * x)]
        return classifier_free(lambda x, t: flat, process, scale=2.0, rescale=phi, prediction=PREDICTIONS["x0"]())(x, 0.5).x0  # noqa: ARG005

    chex.assert_trees_all_equal(x0(1.0, x, x), 0 * x)  # all elements are 2 * 1 - 1 * 2
    for flat in (x, x.at[0, 0].set(5.0)):
        assert jnp.isfinite(jnp.stack(jax.grad(lambda *at: x0(*at).sum(), (1, 2))(0.7, x, flat))).all()
    with pytest.raises(ValueError, match="rescale acts on the network's output: give its prediction type"):
        classifier_free(exact_pair(process), process, scale=2.0, rescale=0.7)


@pytest.mark.parametrize("learned", [False, True])
def test_one_call_for_both_conditions(learned, x64):  # noqa: ARG001
    process, calls = PROCESSES["vp"](), []

    def bind(condition):
        def denoise(x, t):
            calls.append(x.shape)
            prediction = oracle.denoiser(data(), process, condition)(x, t)
            return prediction._replace(variance_output=condition[:, None] * x) if learned else prediction

        return denoise

    ones, pair = np.ones_like(LABELS), batched_pair(bind, jnp.asarray(LABELS), jnp.ones(6, int))
    for t in (0.3, times_of(process)):
        (first, second), (label, one) = jax.jit(lambda t: (pair(X, t), (bind(LABELS)(X, t), bind(ones)(X, t))))(t)
        assert calls == [(12, 2), (6, 2), (6, 2)] and first.evaluations + second.evaluations == 2
        chex.assert_trees_all_close((first, second), (label, one), rtol=1e-9)
        calls.clear()


# ------------------------------------------------------------------------------------------------ thresholding


def test_dynamic_thresholding(x64):  # noqa: ARG001
    """NumPy's percentile of each example; within [-1, 1]; one that is within already stays as it is; eps follows from x0."""
    process, t = PROCESSES["sub_vp"](), jnp.array([0.2, 0.5, 0.9])
    far = np.random.default_rng(2).normal(size=(3, 4, 5)) * np.array([0.2, 2.0, 9.0])[:, None, None]

    def denoise(x, t):  # noqa: ARG001
        return Prediction(far, x, evaluations=7, variance_output=0.3 * x)

    x = np.ones((3, 4, 5))
    found = jax.jit(lambda percentile: dynamic_thresholding(denoise, process, percentile=percentile)(x, t))(80.0)
    s = np.maximum(np.percentile(np.abs(far).reshape(3, -1), 80.0, axis=1), 1.0)[:, None, None]
    chex.assert_trees_all_close(found.x0, np.clip(far, -s, s) / s, rtol=1e-12)
    assert jnp.abs(found.x0).max() == 1 and s[0] == 1 < s[1] < s[2]
    chex.assert_trees_all_equal(found.x0[0], far[0])
    chex.assert_trees_all_close(found.eps, (x - expanded(process.alpha(t)) * found.x0) / expanded(process.sigma(t)), rtol=1e-12)
    chex.assert_trees_all_equal((found.evaluations, found.variance_output), (7, 0.3 * x))
    with pytest.raises(ValueError, match="percentile must be from 0 to 100, found 995"):
        dynamic_thresholding(denoise, process, percentile=995)


# ------------------------------------------------------------------------------------------------ densities on a line
#
# In one dimension the density of a sampler's state is propagated on a grid of points, without samples: a step takes x to
# N(mean(x), deviation(x)^2), and moved = mean + deviation where its noise is 1. Sums over the grid have errors of 1e-9 or less.

LINE = np.linspace(-4.5, 4.5, 181)
SPACING = 0.05


def line():
    return oracle.mixture([[-0.6], [0.5]], [[[0.15]], [[0.1]]], [0.3, 0.7])


def on_line(process, t, label=None):
    return jnp.exp(oracle.log_density(line(), process, LINE[:, None], t, label))


def propagated(sampler, denoise, process, times, density):
    """The density on LINE after all steps, from one at times[0]."""

    def step(density, inputs):
        at = At(*inputs, len(times) - 1, lambda j: np.ones_like(LINE)[:, None], None)  # noqa: ARG005
        moved, mean, _ = sampler.step(denoise, process, LINE[:, None], (), at)
        kernel = jnp.exp(-0.5 * ((LINE - mean) / (moved - mean)) ** 2) / (moved - mean)
        return density @ kernel * SPACING / np.sqrt(2 * np.pi), None

    return jax.lax.scan(step, density, (times[:-1], times[1:], jnp.arange(len(times) - 1)))[0]


def moments(density):
    """Its mass, mean and variance."""
    mass = density * SPACING
    mean = mass @ LINE
    return jnp.stack([mass.sum(), mean, mass @ (LINE - mean) ** 2])


@pytest.mark.thorough
def test_the_mean_shift_approaches_the_conditional_as_steps_grow(x64):  # noqa: ARG001
    """Mass, mean and variance of class 1 at log-SNR 3, from the exact ones at -6: of the first order, with both variances. The
    score form is the conditional's own ancestral sampler."""
    process, errors = PROCESSES["vp"](), []

    @jax.jit
    def found(times):
        denoise, log_prob = oracle.denoiser(line(), process), log_prob_of(line(), process, 1)

        def error(guided, variance):
            end = propagated(ancestral(variance=variance), guided, process, times, on_line(process, times[0], 1))
            return moments(end) - moments(on_line(process, times[-1], 1))

        shifted = mean_shift(denoise, process, log_prob, scale=1.0)
        score = classifier_guidance(denoise, process, log_prob, scale=1.0)
        errors = [error(shifted, variance) for variance in ("fixed_small", "fixed_large")]
        return jnp.stack(errors), error(score, "fixed_small") - error(oracle.denoiser(line(), process, 1), "fixed_small")

    for steps in (48, 96):
        shifted, score = found(process.inverse_log_snr(jnp.linspace(-6.0, 3.0, steps + 1)))
        assert jnp.abs(score).max() < 1e-10 and jnp.abs(shifted[:, 0]).max() < 2e-4
        errors.append(shifted[:, 1:])
    assert (jnp.abs(jnp.log2(errors[0] / errors[1]) - 1) < 0.3).all(), errors
    assert (jnp.abs(errors[1]) < 0.015).all()


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["classifier-free", "score", "mean shift"])
def test_more_guidance_gives_more_of_the_class(form, x64):  # noqa: ARG001
    """The share of class 1 after 24 ancestral steps grows with w, from its weight 0.7 at w = 0 to 0.98 at 4. w is traced."""
    process = PROCESSES["vp"]()
    times = process.inverse_log_snr(jnp.linspace(-6.0, 3.0, 25))

    def share(scale):
        denoise, log_prob = oracle.denoiser(line(), process), log_prob_of(line(), process, 1)
        pair = lambda x, t: (oracle.denoiser(line(), process, 1)(x, t), denoise(x, t))  # noqa: E731
        guided = {
            "classifier-free": classifier_free(pair, process, scale=scale),
            "score": classifier_guidance(denoise, process, log_prob, scale=scale),
            "mean shift": mean_shift(denoise, process, log_prob, scale=scale),
        }[form]
        density = propagated(ancestral(), guided, process, times, on_line(process, times[0]))
        return density * SPACING @ jnp.exp(log_prob(LINE[:, None], times[-1]))

    shares, slopes = jax.jit(jax.vmap(jax.value_and_grad(share)))(jnp.array([0.0, 0.5, 1.0, 2.0, 4.0]))
    assert (jnp.diff(shares) > 0).all() and (slopes > 0).all()
    assert abs(shares[0] - 0.7) < 0.02 and shares[-1] > 0.97


@pytest.mark.thorough
def test_a_sampler_with_guidance_compiles_once_counts_both_and_has_a_slope(x64):  # noqa: ARG001
    """DDIM with w traced. d x / d w agrees with a difference quotient, at the ends w = 0 and 1 too."""
    process, compiled = PROCESSES["linear"](), []
    times, keys = jnp.array([0.9, 0.7, 0.5, 0.3, 0.1]), sample_keys(0, jnp.arange(6))

    @jax.jit
    def drawn(scale):
        compiled.append(scale)
        pair = lambda x, t: tuple(oracle.denoiser(data(), process, label)(x, t) for label in (LABELS, None))  # noqa: E731

        def run(scale):
            guided = classifier_free(pair, process, scale=scale, low=0.2, high=5.0, rescale=0.5, prediction=PREDICTIONS["v"]())
            x, evaluations, _ = sample(ddim(), guided, process, times, keys, (2,))
            return x, evaluations

        (x, evaluations), slope = jax.jvp(run, (scale,), (jnp.ones_like(scale),))
        return x, evaluations, slope[0]

    for scale in (0.0, 1.0, 3.0):
        x, evaluations, slope = drawn(scale)
        quotient = (drawn(scale + 1e-5)[0] - drawn(scale - 1e-5)[0]) / 2e-5
        assert evaluations == 10 and jnp.abs(slope).max() > 0.01
        chex.assert_trees_all_close(slope, quotient, rtol=1e-6, atol=1e-8)
    assert len(compiled) == 1
