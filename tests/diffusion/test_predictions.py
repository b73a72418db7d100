"""Prediction types: every one, for every process, up to alpha = 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.oracle import denoiser, mixture
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction, convert, eps_to_x0, network_denoiser, x0_to_eps
from ddpm_jax.diffusion.processes import PROCESSES

ALL = {name: make() for name, make in PREDICTIONS.items()}
MEANS, COVARIANCES = np.array([[0.5, -0.3], [-0.4, 0.2]]), np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]]])


def usable(process):
    to_zero = process.alpha(process.t_max) == 0
    return [name for name in ALL if not (to_zero and ALL[name].needs_alpha)]


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@jax.jit
def states(process, times, signal, noise):
    """At every time some x of the size of x_t, and what the oracle knows of it."""
    x = 0.5 * process.alpha(times)[:, None] * signal + process.sigma(times)[:, None] * noise
    exact = denoiser(mixture(MEANS, COVARIANCES), process)(x, times)
    return x, (exact.x0, exact.eps), (process.alpha(times)[:, None], process.sigma(times)[:, None])


@jax.jit
def targets(process, x0, eps, t):
    return {name: prediction.target(process, x0, eps, t) for name, prediction in ALL.items()}


@jax.jit
def denoised(process, x, t, outputs):
    """By the denoisers of networks with these outputs. (Traced, alpha is not checked.)"""
    networks = {name: lambda shown, time, name=name: outputs[name] for name in ALL}  # noqa: ARG005
    return {name: network_denoiser(networks[name], process, prediction)(x, t) for name, prediction in ALL.items()}


def test_the_exact_output_makes_the_oracle(make_process, process, times):
    """Within 1e-9 in float64. In float32 alpha x0 and sigma eps, the parts of x, within 1e-4 of sqrt(alpha^2 + sigma^2)."""
    x, exact, (alpha, sigma) = states(process, times, *random(2, len(times), 2))
    outputs = targets(process, *exact, times)
    made = denoised(process, x, times, outputs)
    with jax.enable_x64(False):
        single = denoised(make_process(), *jax.tree.map(np.float32, (x, times, outputs)))
    for name in usable(process):
        chex.assert_trees_all_close(made[name][:2], exact, rtol=1e-9, atol=1e-9)
        for part, found, value in zip((alpha, sigma), single[name][:2], exact, strict=True):
            assert np.abs(part * (np.asarray(found) - np.asarray(value)) / np.hypot(alpha, sigma)).max() < 1e-4, name


@jax.jit
def conversions(process, x, t, outputs):
    """Outputs of all types [types, B, D] as x0 and eps; these as outputs of every type [types, types, B, D]; and back."""
    rows = list(ALL.values())
    read = [lambda output, row=row: row.to_x0_eps(process, x, t, output) for row in rows]
    pairs = [of(output) for of, output in zip(read, outputs, strict=True)]
    x0, eps = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    seen = [jax.vmap(lambda x0, eps, row=row: row.target(process, x0, eps, t))(x0, eps) for row in rows]
    back = jnp.stack([jnp.stack(jax.vmap(of)(output)) for of, output in zip(read, seen, strict=True)], 1)
    return jnp.stack([x0, eps]), jnp.stack(seen), back, jnp.stack([row.scale(process, t) for row in rows])


@pytest.mark.thorough
def test_any_type_to_any_other_and_back(process, times):
    """From arbitrary outputs: they make up x, they come back from every type, and squared differences are as the scales."""
    x, _, (alpha, sigma) = jax.tree.map(np.asarray, states(process, times, *random(2, len(times), 2)))
    own = np.array([name in usable(process) for name in ALL])
    first, second = random(2, len(ALL), *x.shape)
    pair, seen, back, scales = map(np.asarray, conversions(process, x, times, first))
    other = np.asarray(conversions(process, x, times, second)[1])
    made_up = alpha * pair[0, own] + sigma * pair[1, own]
    np.testing.assert_allclose(made_up, np.broadcast_to(x, made_up.shape), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.einsum("ii...->i...", seen)[own], first[own], rtol=1e-7, atol=1e-7)
    returned = back[:, :, own][:, own]
    np.testing.assert_allclose(returned, np.broadcast_to(pair[:, None, own], returned.shape), rtol=1e-7, atol=1e-7)
    errors = np.square(seen[own][:, own] - other[own][:, own]).sum(-1) / scales[own][:, None]
    np.testing.assert_allclose(errors, np.broadcast_to(errors[:1], errors.shape), rtol=1e-6, atol=1e-12)


def test_convert(x64):  # noqa: ARG001
    """On vp, v = (eps - sigma x) / alpha by x0 = (x - sigma eps) / alpha put into its definition, and back."""
    process, t = PROCESSES["vp"](), jnp.array([0.2, 0.9])
    x, output = random(2, 2, 3)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    v = convert(ALL["eps"], ALL["v"], process, x, t, output)
    chex.assert_trees_all_close(v, (output - sigma * x) / alpha, rtol=1e-9)
    chex.assert_trees_all_close(convert(ALL["v"], ALL["eps"], process, x, t, v), output, rtol=1e-9)


# A type's own words, of those that papers have; the tests above prove every row of PREDICTIONS by the oracle.
# What the papers have the network say, for alpha = 1, sigma = t (edm) and for alpha = 1 - t, sigma = t; x0, e: data and noise
DEFINITIONS = {
    "edm": {
        "eps": lambda x0, e, t: e,  # noqa: ARG005
        "x0": lambda x0, e, t: x0,  # noqa: ARG005
        "score": lambda x0, e, t: -((x0 + t * e) - x0) / t**2,
        "v": lambda x0, e, t: e - t * x0,
        "velocity": lambda x0, e, t: ((x0 + t * e) - x0) / t,  # (x - D) / sigma: Karras et al. 2022, algorithm 1
        "edm": lambda x0, e, t: (x0 - 0.25 / (t**2 + 0.25) * (x0 + t * e)) / (0.5 * t / np.sqrt(t**2 + 0.25)),
    },
    "rectified_flow": {
        "eps": lambda x0, e, t: e,  # noqa: ARG005
        "x0": lambda x0, e, t: x0,  # noqa: ARG005
        "score": lambda x0, e, t: -e / t,  # noqa: ARG005
        "v": lambda x0, e, t: (1 - t) * e - t * x0,
        "velocity": lambda x0, e, t: e - x0,  # noqa: ARG005
        "edm": lambda x0, e, t: (x0 - (1 - t) * 0.25 / width(t) ** 2 * ((1 - t) * x0 + t * e)) / (t * 0.5 / width(t)),
    },
}


def width(t):
    return np.sqrt((0.5 * (1 - t)) ** 2 + t**2)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_targets_are_the_papers(name, x64):  # noqa: ARG001
    x0, eps, t = np.array([[0.7, -0.2]] * 2), np.array([[-0.4, 1.1]] * 2), np.array([[0.15], [0.8]])
    found = targets(PROCESSES[name](), x0, eps, t[:, 0])
    for prediction, formula in DEFINITIONS[name].items():
        chex.assert_trees_all_close(found[prediction], formula(x0, eps, t), rtol=1e-9)


def test_what_the_network_is_shown():
    """EDM: c_in x and log(sigma) / 4, one per example (Karras et al. 2022, table 1); others x itself."""
    x, t = jnp.ones((3, 2)), jnp.float32(0.7)

    def shown(name, process):
        seen = []
        network_denoiser(lambda *inputs: seen.append(inputs) or inputs[0], process, ALL[name])(x, t)
        return seen[0]

    edm, vp = PROCESSES["edm"](), PROCESSES["vp"]()
    chex.assert_trees_all_close(shown("edm", edm), (x / np.sqrt(0.49 + 0.25), np.full(3, np.log(0.7) / 4)), rtol=1e-6)
    w = np.sqrt(0.25 * vp.alpha(t) ** 2 + vp.sigma(t) ** 2)
    chex.assert_trees_all_close(shown("edm", vp), (x / w, np.full(3, 999 * 0.7)), rtol=1e-6)
    chex.assert_trees_all_close(shown("v", vp), (x, np.full(3, 999 * 0.7)), rtol=1e-6)


def test_x0_and_eps_from_each_other():
    process, x, x0, t = PROCESSES["vp"](), jnp.array([[0.3], [-2.0]]), jnp.array([[1.0], [0.5]]), jnp.array([0.2, 0.9])
    eps = x0_to_eps(process, x, t, x0)
    chex.assert_trees_all_close(process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps, x, rtol=1e-6)
    chex.assert_trees_all_close(eps_to_x0(process, x, t, eps), x0, rtol=1e-4)


def test_learned_variance_splits_the_output():
    x = jnp.ones((2, 4, 4, 3))
    halves = 0.1 * x, 7.0 * x
    denoise = network_denoiser(lambda *_: jnp.concatenate(halves, -1), PROCESSES["vp"](), ALL["eps"], learned_variance=True)
    prediction = denoise(x, 0.5)
    assert isinstance(prediction, Prediction) and prediction.evaluations == 1
    chex.assert_trees_all_equal((prediction.eps, prediction.variance_output), halves)
    assert network_denoiser(lambda *_: x, PROCESSES["vp"](), ALL["eps"])(x, 0.5).variance_output is None


@pytest.mark.parametrize("shape, learned", [((2, 6), False), ((2, 3), True), ((2, 1), False), ((2, 12), True)])
def test_an_output_of_another_shape_is_refused(shape, learned):
    denoise = network_denoiser(lambda *_: jnp.ones(shape), PROCESSES["vp"](), ALL["eps"], learned_variance=learned)
    with pytest.raises(ValueError, match=r"output must have shape \[2, [36]\] for this x, found"):
        denoise(jnp.ones((2, 3)), 0.5)


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].needs_alpha])
def test_eps_and_score_are_refused_where_alpha_is_0(name):
    for process in (PROCESSES["jsd"](), PROCESSES["cosine"](zero_terminal_snr=True), PROCESSES["rectified_flow"](t_max=1.0)):
        with pytest.raises(ValueError, match="where alpha = 0, .* says nothing of x0: use one of x0, v, velocity, edm"):
            network_denoiser(lambda *_: 0, process, ALL[name])


@pytest.mark.thorough
def test_a_sweep_over_a_process_parameter_is_a_vmap():
    def x0(beta_max):
        return network_denoiser(lambda x, time: x, PROCESSES["vp"](beta_max=beta_max), ALL["eps"])(jnp.ones((1, 1)), 0.5).x0  # noqa: ARG005

    values = jnp.array([10.0, 20.0])
    chex.assert_trees_all_close(jax.vmap(x0)(values), jnp.stack([x0(value) for value in values]), rtol=1e-5)
