"""Schedules at given steps, and what each optimizer does to which parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.construct import construct
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.optimizers import SCHEDULES, are_parts, is_kernel, optimizer_of, parts_of, schedule_of
from ddpm_jax.runs import logs, resumable, run_directory
from ddpm_jax.tasks import build


def config_of(train_steps=100, **optim):
    config = configs.base()
    config.optim.update(warmup_steps=0, clip_norm=0.0, learning_rate=0.1)
    config.optim.update(optim)
    config.train.steps = train_steps
    return config


W, T, TOP, END = 4, 20, 0.4, 0.1  # warm-up, the schedule's steps, learning rates


def share(k):
    return min((k + 1 - W) / (T - W), 1.0)


AFTER = {
    "constant": lambda k: TOP,  # noqa: ARG005
    "linear": lambda k: TOP + share(k) * (END - TOP),
    "cosine": lambda k: END + (TOP - END) * (1 + np.cos(np.pi * share(k))) / 2,
    "inverse_sqrt": lambda k: max(END, TOP * np.sqrt(W / (k + 1))),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    """Up to the learning rate at the last step of the warm-up, then down to the final one; without a warm-up too."""
    final = {} if name == "constant" else {"final_learning_rate": END}
    config = config_of(T, schedule=name, learning_rate=TOP, warmup_steps=W, **final)
    steps = [0, 1, W - 1, W, W + 1, 11, T - 2, T - 1, T, 10 * T]
    expected = [TOP * (k + 1) / W if k < W else AFTER[name](k) for k in steps]
    for schedule in (schedule_of(config), jax.jit(schedule_of(config))):
        np.testing.assert_allclose([schedule(k) for k in steps], expected, rtol=1e-5)
    if name in ("linear", "cosine"):
        assert expected[-4] > expected[-3] == expected[-1] == pytest.approx(END)
        config.optim.schedule_steps = 12
        np.testing.assert_allclose([schedule_of(config)(k) for k in (11, T)], END, rtol=1e-5)
    config.optim.warmup_steps = 0
    first = {"constant": TOP, "inverse_sqrt": TOP, "linear": TOP + 0.05 * (END - TOP)}
    first["cosine"] = END + (TOP - END) * (1 + np.cos(np.pi / 20)) / 2
    config.optim.schedule_steps = 0
    np.testing.assert_allclose(schedule_of(config)(0), first[name], rtol=1e-5)


@pytest.mark.parametrize("clip_norm, expected", [(1.0, 0.1), (0.0, 1.0), (100.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, expected):
    """Norm 10; seen in Adam's first moment, (1 - b1) g."""
    optimizer = optimizer_of(config_of(clip_norm=clip_norm))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update({"a": jnp.array([6.0]), "b": jnp.array([8.0])}, optimizer.init(params), params)
    moment = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1,)][0]
    np.testing.assert_allclose(moment, 0.1 * 6.0 * expected, rtol=1e-5)


def adam_by_hand(gradients, b1, b2, eps):
    """Its directions, one after the other."""
    m = v = 0.0
    for k, gradient in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        yield (m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + eps)


GRADIENTS = np.random.default_rng(0).normal(size=(5, 6, 4))


def steps_of(optimizer, params, of):
    """Parameters after each of five steps by gradients of(leaf, k)."""
    state, seen = optimizer.init(params), []
    for k in range(5):
        updates, state = optimizer.update(jax.tree.map(lambda leaf: jnp.asarray(of(leaf, k), "f"), params), state, params)  # noqa: B023
        params = jax.tree.map(jnp.add, params, updates)
        seen.append(params)
    return seen


def test_adam_and_its_decay_against_their_formulas():
    """Weight decay is of the parameter, not of the gradient, and of kernels alone."""
    params = {"kernel": jnp.ones((6, 4)), "bias": jnp.ones((6, 4))}
    for name, decay in (("adam", 0.0), ("adamw", 0.3)):
        told = {"weight_decay": decay} if decay else {}
        config = config_of(name=name, learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3, warmup_steps=2, **told)
        found = steps_of(optimizer_of(config), params, lambda leaf, k: GRADIENTS[k])  # noqa: ARG005
        kernel = bias = np.ones((6, 4))
        for k, direction in enumerate(adam_by_hand(GRADIENTS, 0.8, 0.9, 1e-3)):
            rate = 0.1 * min((k + 1) / 2, 1)
            kernel, bias = kernel - rate * (direction + decay * kernel), bias - rate * direction
            np.testing.assert_allclose(found[k]["kernel"], kernel, rtol=1e-5)
            np.testing.assert_allclose(found[k]["bias"], bias, rtol=1e-5)


def orthogonalised(matrix):
    """Five of Newton and Schulz's steps with Jordan's coefficients, the matrix first of Frobenius norm 1 and wide."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize(
    "path, shape, as_matrix",
    [
        ("Dense_0", (6, 4), (6, 4)),
        ("Conv_0", (3, 3, 2, 4), (18, 4)),  # a window's pixels to channels
        ("query", (6, 2, 3), (6, 6)),  # to heads
        ("out", (2, 3, 4), (6, 4)),  # from heads
    ],
)
def test_muon_against_its_formula(path, shape, as_matrix):
    """Kernels as matrices, with Nesterov's momentum; decayed; biases and embeddings by Adam, at the same rate."""
    random = np.random.default_rng(1)
    gradients, of_others = random.normal(size=(5, *shape)), random.normal(size=(5, 7))
    params = {path: {"kernel": jnp.ones(shape), "bias": jnp.ones(7)}, "Embed_0": {"embedding": jnp.ones((7, 1))}}
    config = config_of(name="muon", learning_rate=0.1, momentum=0.9, weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-3)

    def of(leaf, k):
        return gradients[k] if leaf.shape == shape else of_others[k].reshape(leaf.shape)

    found = steps_of(optimizer_of(config), params, of)
    kernel, other, mean = np.ones(shape), np.ones(7), 0.0
    for k, direction in enumerate(adam_by_hand(of_others, 0.8, 0.9, 1e-3)):
        mean = 0.9 * mean + 0.1 * gradients[k]
        ahead = 0.9 * mean / (1 - 0.9 ** (k + 2)) + 0.1 * gradients[k] / (1 - 0.9 ** (k + 1))
        update = 0.2 * np.sqrt(max(as_matrix)) * orthogonalised(ahead.reshape(as_matrix)).reshape(shape)
        kernel, other = kernel - 0.1 * (update + 0.3 * kernel), other - 0.1 * direction
        np.testing.assert_allclose(found[k][path]["kernel"], kernel, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[k][path]["bias"], other, rtol=1e-5)
        np.testing.assert_allclose(found[k]["Embed_0"]["embedding"][:, 0], other, rtol=1e-5)


def test_what_is_a_kernel():
    """Of the whole U-Net with labels and attention: what is decayed and orthogonalised is every kernel and nothing else."""
    config = variants.apply(configs.base(), "smoke")
    config.network.update(channels=4, attention=(4,))
    unet = construct(NETWORKS, dict(config.network) | {"num_classes": 3})
    params = jax.eval_shape(unet.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if is_kernel(path, leaf)}
    others = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves} - kernels
    assert {name.rsplit("/")[-1] for name in others} == {"bias", "scale", "embedding"}
    ends = {len(leaf.shape) for path, leaf in leaves if is_kernel(path, leaf)}
    assert len(kernels) > 10 and ends == {2, 3, 4}


def test_each_part_has_a_rate_of_its_own():
    """A factor of all that the optimizer does; 0: it stays. Parts that are not named have 1, others are an error."""
    params = {"params": {name: {"kernel": jnp.ones((2, 2))} for name in ("a", "b", "c")}}
    plain = config_of(name="adamw", weight_decay=0.3)
    parts = config_of(name="adamw", weight_decay=0.3, parts="a=0.5, b=0")
    once, scaled = (steps_of(optimizer_of(c), params, lambda leaf, k: GRADIENTS[k, :2, :2])[0] for c in (plain, parts))  # noqa: ARG005
    for name, factor in (("a", 0.5), ("b", 0.0), ("c", 1.0)):
        moved, whole = (tree["params"][name]["kernel"] - 1 for tree in (scaled, once))
        np.testing.assert_allclose(moved, factor * whole, rtol=1e-5)
    with pytest.raises(UserError, match="optim.parts names 'd', but the parts of the parameters are a, b, c"):
        optimizer_of(config_of(parts="d=2")).init(params)
    assert parts_of("x = 0.1,y=2") == {"x": 0.1, "y": 2.0} and parts_of("") == {}
    assert not any(map(are_parts, ("x", "x=-1", "=1", "x=inf", "x=1,,y=2", "x=1=2")))


class Tiny(nn.Module):
    """A network with kernels, biases and a scale."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        return nn.Dense(2)(nn.LayerNorm()(nn.Dense(4)(x))) + time[:, None] / 1000


@pytest.mark.parametrize("name, schedule", [("adamw", "cosine"), pytest.param("muon", "linear", marks=pytest.mark.thorough)])
def test_a_run_continues_bit_for_bit_and_logs_its_rates(
    name, schedule, point_config, point_source, tmp_path, monkeypatch, metrics
):
    monkeypatch.setitem(NETWORKS, "tiny", Tiny)
    config = point_config
    config.network.name = "tiny"
    config.optim.update(name=name, schedule=schedule, schedule_steps=8, final_learning_rate=1e-5, warmup_steps=2)
    config.optim.weight_decay = 0.1
    config.train.update(log_every=1, sample_every=0, checkpoint_every=3)

    def train(workdir, steps):
        config.train.steps = steps
        run_directory.write(workdir, config, (2,), 3)
        return jax.device_get(resumable.train(config, workdir, build(config, (2,), 3), point_source, jax.devices()[:1]))

    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "parts", 3)
    for a, b in zip(*map(jax.tree.leaves, (whole, train(tmp_path / "parts", 8))), strict=True):
        np.testing.assert_array_equal(a, b)
    logged = [line["learning_rate"] for line in logs.read(tmp_path / "parts" / "metrics.jsonl")]
    np.testing.assert_allclose(logged, [schedule_of(config)(k) for k in range(8)], rtol=1e-6)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert ddpm_jax.load(tmp_path / "whole").state.step == 8


def test_a_run_whose_rates_depend_on_its_length_keeps_it(tmp_path):
    """Where the schedule ends with the training; it may be changed on purpose, or have a length of its own."""
    config = config_of(100, schedule="cosine")
    run_directory.write(tmp_path, config, (2,), 3)
    longer = config_of(200, schedule="cosine")
    with pytest.raises(UserError, match="another config: train.steps: 100 -> 200 .* add --config.train.allow_changes=true"):
        run_directory.check_agreement(tmp_path, longer)
    longer.train.allow_changes = True
    run_directory.check_agreement(tmp_path, longer)
    for of_its_own in ({"schedule": "cosine", "schedule_steps": 100}, {"schedule": "inverse_sqrt"}, {}):
        run_directory.write(tmp_path, config_of(100, **of_its_own), (2,), 3)
        run_directory.check_agreement(tmp_path, config_of(200, **of_its_own))
