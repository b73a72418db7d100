import functools
import inspect
import itertools
import json
import re
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from ddpm_jax import command
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.config.idle import why_not
from ddpm_jax.construct import AUTO, arguments, construct
from ddpm_jax.data import SOURCES, Source
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.inverse import INPAINTING
from ddpm_jax.diffusion.likelihood import SOLVERS, chain_times
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS
from ddpm_jax.diffusion.predictions import PREDICTIONS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.samplers import SAMPLERS, ddim
from ddpm_jax.diffusion.times import TIMES, Examples
from ddpm_jax.errors import Diverged, UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.models import NETWORKS
from ddpm_jax.optimizers import OPTIMIZERS, SCHEDULES, optimizer_of
from ddpm_jax.runs import jobs, resumable, sampling
from ddpm_jax.tasks import TASKS, build, inpainting
from ddpm_jax.tasks.choices import choose, spacing_of
from ddpm_jax.training import loop


def smoke(changes=()):
    return configs.unflatten(configs.flatten(variants.apply(configs.base(), "smoke")) | dict(changes))


# ------------------------------------------------------- every key arrives: what a task is built of


def altered(constructor, **values):
    """A constructor of the same parameters that sets some of them itself."""

    @functools.wraps(constructor)
    def other(*args, **given):
        return constructor(*args, **(given | values))

    return other


# A second entry for tables, so that the choice can be seen where there is but one.
SECOND = {
    "network.name": (NETWORKS, altered(NETWORKS["unet"], blocks=2)),
}

# key: (another value, which of the task's parts it changes: init, loss, sample; what both configs also set)
TASK_KEYS = {
    "network.name": ("second", "init loss sample", {}),
    "network.channels": (16, "init loss sample", {}),
    "network.multipliers": ((2, 1), "init loss sample", {}),
    "network.blocks": (3, "init loss sample", {}),
    "network.attention": ((8,), "init loss sample", {}),
    "network.heads": (2, "init loss sample", {}),
    "network.groups": (4, "loss sample", {}),
    "network.dropout": (0.5, "loss", {}),
    "network.dtype": ("bfloat16", "loss sample", {}),
    "network.scale_shift_norm": (True, "init loss sample", {}),
    "network.residual_resample": (True, "init loss sample", {}),
    "network.head_channels": (4, "init loss sample", {}),
    "network.time_embedding": ("fourier", "init loss sample", {}),
    "network.fourier_scale": (8.0, "loss sample", {"network.time_embedding": "fourier"}),
    "network.skip_rescale": (True, "loss sample", {}),
    "network.resampling": ("fir", "loss sample", {}),
    "network.resample_projection": (True, "init loss sample", {"network.residual_resample": True}),
    "network.progressive_input": (True, "init loss sample", {}),
    "network.single_up_attention": (True, "init loss sample", {"network.attention": (4,)}),
    "data.flip": (True, "loss", {}),
    "cond.labels": (True, "init loss sample", {}),
    "cond.dropout": (0.2, "loss", {"cond.labels": True}),
    "process.name": ("cosine", "loss sample", {}),
    "process.steps": (900, "loss sample", {}),
    "process.beta_start": (2e-4, "loss sample", {}),
    "process.beta_end": (0.03, "loss sample", {}),
    "process.rescale": (True, "loss sample", {"process.steps": 900}),
    "process.offset": (0.01, "loss sample", {"process.name": "cosine"}),
    "process.beta_limit": (0.9, "loss sample", {"process.name": "cosine"}),
    "process.low": (-2.0, "loss sample", {"process.name": "sigmoid_alpha_bar"}),
    "process.high": (2.0, "loss sample", {"process.name": "sigmoid_alpha_bar"}),
    "process.tau": (0.5, "loss sample", {"process.name": "sigmoid_alpha_bar"}),
    "process.zero_terminal_snr": (True, "loss sample", {"prediction.name": "v"}),
    "process.beta_min": (0.2, "loss sample", {"process.name": "vp"}),
    "process.beta_max": (10.0, "loss sample", {"process.name": "vp"}),
    "process.log_snr_limit": (15.0, "loss sample", {"process.name": "continuous_cosine"}),
    "process.sigma_min": (0.02, "loss sample", {"process.name": "ve"}),
    "process.sigma_max": (20.0, "loss sample", {"process.name": "ve"}),
    "process.t_max": (0.9, "loss sample", {"process.name": "rectified_flow"}),
    "process.ratio_max": (80.0, "loss sample", {"process.name": "trig_flow"}),
    "prediction.name": ("x0", "loss sample", {}),
    "prediction.sigma_data": (0.7, "loss sample", {"prediction.name": "edm"}),
    "loss.name": ("vlb", "loss", {"loss.variance": "fixed_small"}),
    "loss.weighting": ("v", "loss", {}),
    "loss.variance": ("learned", "init loss sample", {"loss.name": "vlb", "loss.variance": "fixed_large"}),
    "loss.sigma_data": (0.7, "loss", {"loss.weighting": "edm"}),
    "loss.gamma": (1.0, "loss", {"loss.weighting": "min_snr"}),
    "loss.k": (2.0, "loss", {"loss.weighting": "p2"}),
    "loss.power": (0.5, "loss", {"loss.weighting": "p2"}),
    "loss.bias": (1.0, "loss", {"loss.weighting": "sigmoid"}),
    "times.name": ("log_normal", "loss", {"process.name": "edm"}),
    "times.t_min": (0.01, "loss", {"process.name": "vp"}),
    "times.mean": (0.0, "loss", {"process.name": "edm", "times.name": "log_normal"}),
    "times.std": (1.0, "loss", {"process.name": "edm", "times.name": "log_normal"}),
    "times.location": (0.5, "loss", {"times.name": "logit_normal"}),
    "times.scale": (0.5, "loss", {"times.name": "logit_normal"}),
    "times.kept": (5, "loss", {"times.name": "importance"}),
    "times.uniform_share": (0.1, "loss", {"times.name": "importance"}),
    "sampler.name": ("ddim", "sample", {}),
    "sampler.steps": (6, "sample", {}),
    "sampler.grid": ("quadratic", "sample", {}),
    "sampler.t_min": (0.01, "sample", {"process.name": "vp"}),
    "sampler.sections": ("2,2,1", "sample", {"sampler.grid": "sections", "sampler.sections": "ddim5"}),
    "sampler.rho": (5.0, "sample", {"sampler.grid": "karras", "process.name": "edm"}),
    "sampler.times": ((0.5,), "sample", {"sampler.grid": "explicit", "sampler.steps": 1}),
    "sampler.variance": ("fixed_small", "sample", {}),
    "sampler.eta": (0.5, "sample", {"sampler.name": "ddim"}),
    "sampler.s_churn": (2.0, "sample", {"sampler.name": "heun"}),
    "sampler.s_min": (0.1, "sample", {"sampler.name": "heun", "sampler.s_churn": 1.0}),
    "sampler.s_max": (50.0, "sample", {"sampler.name": "heun", "sampler.s_churn": 1.0}),
    "sampler.s_noise": (1.003, "sample", {"sampler.name": "euler", "sampler.s_churn": 1.0}),
    "sampler.predictor": ("ddim", "sample", {"sampler.name": "predictor_corrector"}),
    "sampler.corrector_steps": (2, "sample", {"sampler.name": "predictor_corrector"}),
    "sampler.snr": (0.1, "sample", {"sampler.name": "predictor_corrector"}),
    "sampler.norms": ("batch", "sample", {"sampler.name": "predictor_corrector"}),
    "sampler.langevin_steps": (3, "sample", {"sampler.name": "annealed_langevin"}),
    "sampler.rate": (0.1, "sample", {"sampler.name": "annealed_langevin"}),
    "sampler.order": (3, "sample", {"sampler.name": "unipc"}),
    "sampler.corrector": (False, "sample", {"sampler.name": "unipc"}),
    "sampler.corrector_order": (1, "sample", {"sampler.name": "sa_solver"}),
    "sampler.tau": (0.5, "sample", {"sampler.name": "sa_solver"}),
    "sampler.variant": ("bh1", "sample", {"sampler.name": "unipc"}),
    "sampler.lower_order_final": (True, "sample", {"sampler.name": "dpmpp_2m"}),
    "sampler.slope": ("heun", "sample", {"sampler.name": "sde_dpmpp_2m"}),
    "sampler.remainder": (1, "sample", {"sampler.name": "dpm_fast"}),
    "sampler.noise_scale": (0.5, "sample", {"sampler.name": "generalized_ddim"}),
    "sampler.variance_scale": (0.2, "sample", {"sampler.name": "adjusted_ddim"}),
    "sampler.beta_a": (0.8, "sample", {"sampler.grid": "beta", "process.name": "vp"}),
    "sampler.beta_b": (0.8, "sample", {"sampler.grid": "beta", "process.name": "vp"}),
    "sampler.published": (True, "sample", {"sampler.name": "dpmpp_3m"}),
    "sampler.rtol": (1e-3, "sample", {"sampler.name": "adaptive_ode"}),
    "sampler.atol": (1e-3, "sample", {"sampler.name": "adaptive_ode"}),
    "sampler.max_evaluations": (100, "sample", {"sampler.name": "adaptive_ode"}),
    "sampler.last": ("mean", "sample", {}),
    "sampler.labels": ((2, 0), "sample", {"cond.labels": True}),
    "guidance.scale": (2.0, "sample", {"cond.labels": True}),
    "guidance.interval_low": (0.5, "sample", {"cond.labels": True, "guidance.scale": 2.0}),
    "guidance.interval_high": (9.0, "sample", {"cond.labels": True, "guidance.scale": 2.0}),
    "guidance.rescale": (0.7, "sample", {"cond.labels": True, "guidance.scale": 2.0}),
    "guidance.threshold": (99.5, "sample", {}),
    "sampler.clip": ("keep_eps", "sample", {"sampler.name": "ddim"}),
}


def computation(f, *args):
    """What a function computes: its jaxpr, and the arrays that it has captured."""
    closed = jax.make_jaxpr(f)(*args)
    captured = [np.asarray(const).tolist() for const in closed.consts if not jnp.issubdtype(const.dtype, jax.dtypes.prng_key)]
    return re.sub(r" at 0x[0-9a-f]+|<function .*?>", "", str(closed)), captured


def parts(config):
    task = build(config, (8, 8, 1), 3)
    params = jax.eval_shape(task.init, jax.random.key(0))
    examples = Examples(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)), jnp.arange(2), 2)
    batch = {"image": jax.ShapeDtypeStruct((2, 8, 8, 1), np.uint8), "label": jax.ShapeDtypeStruct((2,), np.int32)}
    indices = jax.ShapeDtypeStruct((2,), np.int32)
    knobs = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(task.knobs)]
    return {
        "init": str(params),
        "loss": computation(task.loss, params, (), batch, examples, task.history),
        "sample": (computation(task.sample, params, (), task.knobs, np.uint32(0), indices), knobs),
    }


def tree(made):
    return str(jax.tree.structure(made)), [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(made)]


def of_process(config):
    return tree(construct(PROCESSES, config.process))


def of_prediction(config):
    prediction = construct(PREDICTIONS, config.prediction)
    return computation(lambda x: prediction.scale(PROCESSES["edm"](), x), jnp.full(2, 0.5))


def of_times(config):
    process, times, total = construct(PROCESSES, config.process), construct(TIMES, config.times), 2
    draw = lambda keys: times.draw(process, Examples(keys, jnp.arange(total), total), times.init(process))  # noqa: E731
    return computation(draw, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), total)))


def of_loss(config):
    loss = construct(LOSSES, dict(config.loss) | {"weighting": construct(WEIGHTINGS, config.loss, choice="weighting")})
    network = lambda x, time: jnp.concatenate([x] * (1 + bool(loss.learns)), -1)  # noqa: E731, ARG005
    process, x, t = PROCESSES["linear"](steps=10), jnp.zeros((2, 3)), jnp.full(2, 0.5)
    return computation(lambda x: loss.of(network, process, PREDICTIONS["eps"](), x, x, t), x)


def of_sampler(config):
    process = construct(PROCESSES, config.process)
    spacing = dict(config.sampler) | {"grid": spacing_of(config)}
    return tree((construct(SAMPLERS, config.sampler), construct(GRIDS, spacing, process, choice="grid")))


def of_evaluation(config):
    solver = construct(SOLVERS, config.eval, choice="solver")
    chain = chain_times(construct(PROCESSES, config.process), steps=config.eval.bound_steps)
    return solver.func, str(solver.args), solver.keywords, np.asarray(chain).tolist()


def of_network(config):
    network = construct(NETWORKS, dict(config.network) | {"outputs": 1, "num_classes": 0})
    x, time = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    params = jax.eval_shape(network.init, jax.random.key(0), x, time)
    return str(params), computation(network.apply, params, x, time)


def given_to(config, section):
    """The choices of a section and of the process, with what their constructors are given: what is made depends on no more."""
    keys = [key for key in configs.KEYS if key.startswith((section, "process")) and isinstance(configs.KEYS[key].accepts, dict)]
    chosen = [(key, configs.KEYS[key].accepts[name]) for key in keys if (name := configs.value_of(key, config)) != AUTO]
    return str([(key, made, arguments(made, config[key.partition(".")[0]])) for key, made in chosen])


def crossed(**choices):
    return [dict(zip(choices, names, strict=True)) for names in itertools.product(*choices.values())]


# section: (what is made of it, the choices to make it of); those that do not go together are passed over.
MADE = {
    "process": (of_process, crossed(**{"process.name": PROCESSES})),
    "prediction": (of_prediction, crossed(**{"prediction.name": PREDICTIONS})),
    "times": (of_times, crossed(**{"process.name": ("linear", "vp"), "times.name": TIMES})),
    "loss": (
        of_loss,
        crossed(**{"loss.weighting": WEIGHTINGS}) + crossed(**{"loss.name": ("hybrid", "vlb"), "loss.weighting": ("p2",)}),
    ),
    "sampler": (
        of_sampler,
        crossed(**{"sampler.name": SAMPLERS})
        + crossed(**{"sampler.name": ("euler", "heun"), "sampler.s_churn": (1.0,)})
        + crossed(**{"sampler.name": ("deis",), "sampler.order": (3,)})
        + crossed(**{"process.name": ("linear", "vp", "ncsn"), "sampler.grid": GRIDS}),
    ),
    "eval": (of_evaluation, crossed(**{"process.name": ("linear", "vp"), "eval.solver": SOLVERS})),
}


@pytest.mark.parametrize("section", [pytest.param(s, marks=pytest.mark.thorough) if s == "sampler" else s for s in MADE])
def test_a_key_applies_exactly_where_it_does_something(section):
    """Found by making what the choices make, with one value of the key and with another. Elsewhere it is refused."""
    make, all_choices = MADE[section]
    keys = [key for key in configs.KEYS if key.startswith(section) and configs.chooser(key) and key != "sampler.steps"]
    keys += ["eval.bound_steps"] * (section == "eval")
    seen = set()
    for choices in all_choices:
        base = smoke({"sampler.steps": 5, "sampler.sections": "ddim5", "process.steps": 100} | choices)
        try:
            one, given = make(base), given_to(base, section)
        except ValueError:
            continue
        for key in {*keys} - {*choices}:
            value = {"process.steps": 90, "loss.variance": "fixed_small"}.get(key, (TASK_KEYS | EVAL_KEYS)[key][0])
            value = configs.acting(key, base) is not True if isinstance(value, bool) else value
            config = configs.unflatten(configs.flatten(base) | {key: value})
            try:
                differs = (given_to(config, section) != given or key == "eval.bound_steps") and make(config) != one
            except ValueError:  # a fixed variance in the hybrid loss
                differs = True
            assert differs == configs.applies(key, config), (choices, key, why_not(key, config))
            if differs:
                seen.add(key)
            else:
                with pytest.raises(UserError, match=f"config.{key} .*: leave it out"):
                    configs.check_applies(key, config)
    assert seen == {*keys} - {"loss.weighting"}


# What else keeps a key from acting: (key, another value, what both configs set).
IDLE = [
    ("network.fourier_scale", 8.0, {}),
    ("network.resample_projection", True, {}),
    ("network.heads", 2, {"network.head_channels": 4}),
    ("network.single_up_attention", True, {}),
]


@pytest.mark.parametrize("key, value, given", IDLE, ids=[key for key, *_ in IDLE])
def test_a_key_that_does_nothing_changes_no_network(key, value, given):
    config = smoke(given | {key: value})
    assert of_network(config) == of_network(smoke(given)) and not configs.applies(key, config)
    assert configs.applies(key, smoke(TASK_KEYS[key][2]))


def test_the_interval_the_weaker_run_and_the_classifiers_sampler_do_nothing():
    for changes, key in (
        ({"cond.labels": True, "guidance.interval_low": 0.5}, "guidance.interval_low"),
        ({"cond.labels": True, "guidance.interval_high": 9.0}, "guidance.interval_high"),
        ({"cond.labels": True, "guidance.rescale": 0.7}, "guidance.rescale"),
        ({"guidance.weak": "runs/weak"}, "guidance.weak"),
        ({"cond.dropout": 0.2}, "cond.dropout"),
        ({"task": "classifier"}, "sampler.name"),
        ({"task": "classifier"}, "loss.weighting"),
        ({}, "train.max_skips"),
        ({"eval.probe": "exact"}, "eval.probes"),
    ):
        with pytest.raises(UserError, match=f"config.{key} .*: leave it out"):
            configs.check_applies(key, smoke(changes))
    configs.check_applies("guidance.interval_low", smoke({"guidance.classifier": "runs/c"}))
    configs.check_applies("train.max_skips", smoke({"train.on_nonfinite": "skip"}))
    configs.check_applies("sampler.ema", smoke({"task": "classifier"}))


def test_which_processes_are_tables():
    for name, make in PROCESSES.items():
        assert configs.applies("times.t_min", smoke({"process.name": name})) == (make().num_steps == 0), name


@functools.cache
def unchanged_parts(given):
    return parts(smoke(given))


@pytest.mark.thorough
@pytest.mark.parametrize("key", TASK_KEYS)
def test_a_key_of_the_task_arrives(key, monkeypatch):
    """Another value changes the parts of the task that it speaks of, and no other."""
    value, changed, given = TASK_KEYS[key]
    old = unchanged_parts(tuple(given.items()))
    if key in SECOND:
        table, entry = SECOND[key]
        monkeypatch.setitem(table, "second", entry)
    config = smoke(given | {key: value})
    configs.validate(config)
    new = parts(config)
    assert [part for part in old if old[part] != new[part]] == changed.split()


# key: (another value, what both configs also set)
INPAINT_KEYS = {
    "inpaint.method": ("replacement", {}),
    "inpaint.resamplings": (3, {}),
    "inpaint.zeta": (0.5, {"inpaint.method": "dps"}),
    "inpaint.iterations": (2, {"inpaint.method": "mmps"}),
}
INPAINT_FILES = {"inpaint.images": "a.png", "inpaint.mask": "b.png"}  # see tests/training/test_inpainting.py


@functools.cache
def inpainted(changes):
    config = smoke(changes)
    configs.validate(config)
    task = build(config, (8, 8, 1))
    given = inpainting.given(np.zeros((1, 8, 8, 1), np.uint8), np.eye(8), (8, 8, 1))
    params, indices = jax.eval_shape(task.init, jax.random.key(0)), jax.ShapeDtypeStruct((2,), np.int32)
    return computation(task.sample, params, (), task.knobs._replace(given=given), np.uint32(0), indices)


@pytest.mark.thorough
@pytest.mark.parametrize("key", INPAINT_KEYS)
def test_a_key_of_inpainting_arrives(key):
    value, given = INPAINT_KEYS[key]
    assert inpainted(tuple(given.items())) != inpainted((*given.items(), (key, value)))


# ------------------------------------------------------- every key arrives: the optimizer


OPTIMIZER_KEYS = {
    "optim.name": "second",
    "optim.learning_rate": 0.5,
    "optim.warmup_steps": 16,
    "optim.b1": 0.5,
    "optim.b2": 0.5,
    "optim.eps": 1.0,
    "optim.clip_norm": 0.5,
    "optim.parts": "w=0.5",
}
OF_CHOICES = {
    "optim.schedule": ("adam", "constant", "linear"),
    "optim.final_learning_rate": ("adam", "linear", 1e-4),
    "optim.schedule_steps": ("adam", "linear", 9),
    "optim.weight_decay": ("adamw", "constant", 0.5),
    "optim.momentum": ("muon", "constant", 0.5),
}


def updates(config):
    """Of three steps, by gradients whose norm grows."""
    optimizer = optimizer_of(config)
    params = {"w": {"kernel": jnp.ones((1, 2))}}
    state, updates = optimizer.init(params), []
    for scale in (1.0, 2.0, 4.0):
        gradient = {"w": {"kernel": jnp.array([[0.3 * scale, -0.6 * scale**2]])}}
        update, state = optimizer.update(gradient, state, params)
        updates.append(update["w"]["kernel"].tolist())
    return updates


@pytest.mark.parametrize("key", OPTIMIZER_KEYS)
def test_a_key_of_the_optimizer_arrives(key, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "second", altered(OPTIMIZERS["adam"], b1=0.2))
    config = smoke({key: OPTIMIZER_KEYS[key]})
    configs.validate(config)
    assert updates(config) != updates(smoke())


@pytest.mark.parametrize("key", OF_CHOICES)
def test_a_key_of_one_optimizer_or_schedule_arrives(key):
    name, schedule, value = OF_CHOICES[key]
    before = smoke({"optim.name": name, "optim.schedule": schedule, "optim.learning_rate": 0.1})
    config = configs.unflatten(configs.flatten(before) | {key: value})
    configs.validate(config)
    assert configs.applies(key, config) and updates(config) != updates(before)


# ------------------------------------------------------- every key arrives: what a run does


class Toy(nn.Module):
    """A network of three parameters, which compiles at once."""

    @nn.compact
    def __call__(self, x, time, keys=None):
        if keys is None:
            SAMPLED.append(len(x))
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + w[1] * x + w[2] * jnp.cos(time)[:, None, None, None]


class Bad(Toy):
    """One whose output is no number."""

    def __call__(self, x, time, keys=None):
        return jnp.log(-1 - jnp.square(super().__call__(x, time, keys)))


SAMPLED: list[int] = []  # sizes of the batches that `Toy` was traced for without dropout: in sampling


def frames(path):
    with Image.open(path) as film:
        return film.n_frames


@pytest.fixture(scope="module")
def run_job(tmp_path_factory):
    """A function that runs the smoke-size job with `Toy` on made-up data, on one device, and tells what it left."""
    calls = {}
    tmp_path = tmp_path_factory.mktemp("runs")

    def source(
        *, split, data_dir, raw_dir, memory_limit_mb, path, image_size, channels, pattern, num_examples, seed, name="made_up"
    ):
        calls["data"] = {k: v for k, v in locals().items() if k != "calls"}
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
        return Source({"image": images, "label": np.zeros(40, np.int32)}, 1)

    def second_task(*args):
        task = TASKS["diffusion"](*args)
        return task._replace(init=lambda key: jax.tree.map(lambda leaf: leaf + 1, task.init(key)))

    def spied(module, name, f):
        def call(*args, **kwargs):
            calls[name] = f(*args, **kwargs)
            calls[f"micro-batches of {name}"] = kwargs.get("micro_batches")
            calls[f"seed of {name}"] = kwargs.get("seed", args[seed_at[name]] if name in seed_at else None)
            return calls[name]

        monkeypatch.setattr(module, name, call)

    seed_at = {"init_state": 2, "batch_indices": 0}

    monkeypatch = pytest.MonkeyPatch()
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    for module, names in ((resumable, ("train", "init_state")), (loop, ("steps_per_call", "batch_indices", "make_step"))):
        for name in names:
            spied(module, name, getattr(module, name))
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    monkeypatch.setitem(NETWORKS, "bad", Bad)
    monkeypatch.setitem(SOURCES, "made_up", source)
    monkeypatch.setitem(SOURCES, "second", altered(source, name="second"))
    monkeypatch.setitem(TASKS, "second", second_task)

    @functools.cache
    def run(changes=()):
        config = smoke({"network.name": "toy", "data.name": "made_up", "sampler.frames": 0} | dict(changes))
        configs.validate(config)
        calls.clear()
        SAMPLED.clear()
        workdir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        try:
            jobs.train(config, workdir)
        except Diverged as error:
            return {"ends": re.search(r"comes from log|\d+ updates in a row|$", str(error)).group()}
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        folder = workdir / "samples"
        (file,) = folder.glob("step_*.json")
        saved = [path.suffix for path in folder.glob(f"{file.stem}*") if path.is_dir() or path.suffix == ".npz"]
        if saved == [".npz"]:
            (drawn,) = np.load(file.with_suffix(".npz")).values()
        else:
            drawn = np.stack([np.asarray(Image.open(path)) for path in (folder / file.stem).iterdir()])
        return {
            "ends": None,
            "micro_batches": calls["micro-batches of make_step"],
            "data": calls["data"],
            "steps_per_call": calls["steps_per_call"],
            "seeds": [calls[f"seed of {name}"] for name in ("init_state", "batch_indices", "make_step")],
            "start": lines[0]["loss"],
            "params": [leaf.tolist() for leaf in jax.tree.leaves(jax.device_get(calls["train"].params))],
            "ema": [leaf.tolist() for leaf in jax.tree.leaves(jax.device_get(calls["train"].ema))],
            "logged": [line["step"] for line in lines],
            "learning_rate": [line["learning_rate"] for line in lines],
            "checkpoints": sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()),
            "snapshots": sorted(path.name for path in (workdir / "averages").glob("*")),
            "grids": sorted(path.name for path in folder.glob("training_*.png")),
            "drawn": drawn.tolist(),
            "count": len(drawn),
            "saved": saved,
            "frames": {path.stem.removeprefix(file.stem): frames(path) for path in folder.glob("*.gif")},
            "sampled_at_once": max(SAMPLED),
        }

    yield run
    monkeypatch.undo()


# What several keys at once make of an aspect of the run, each of them visibly; None: something else than before.
RUN_KEYS = [
    ({"task": "second"}, {"start": None}),
    ({"seed": 4294967295}, {"seeds": [4294967295, (4294967295, 3), 4294967295], "start": None, "params": None}),
    ({"addresses": "shared"}, {"seeds": [0, (0,), 0], "start": None, "params": None, "drawn": None}),
    ({"ema.decays": (0.9999, 0.0), "sampler.ema": 1, "optim.warmup_steps": 0}, {"ema": None, "drawn": None}),
    ({"ema.widths": (0.2,), "ema.snapshot_every": 8}, {"ema": None, "snapshots": ["step_00000008.safetensors"]}),
    ({"train.batch_size": 20, "train.micro_batches": 5}, {"params": None, "micro_batches": 5}),
    ({"network.name": "bad", "train.on_nonfinite": "skip", "train.max_skips": 3}, {"ends": "3 updates in a row"}),
    ({"network.name": "bad", "train.debug_nans": True}, {"ends": "comes from log"}),
    ({"sampler.seed": 4294967295}, {"drawn": None}),
    (
        {"train.steps": 10, "train.checkpoint_every": 3, "train.keep_last": 1, "train.keep_every": 6},
        {"checkpoints": [6, 10]},  # of 3, 6, 9, 10
    ),
    (
        {
            "data.name": "second",
            "data.split": "test",
            "data.data_dir": "there",
            "data.raw_dir": "raw",
            "data.memory_limit_mb": 3,
            "data.path": "photos",
            "data.image_size": (16,),
            "data.channels": "grey",
            "data.pattern": "ring",
            "data.num_examples": 7,
            "data.seed": 9,
            "optim.learning_rate": 0.5,
            "optim.warmup_steps": 16,
            "train.steps_per_call": 2,
            "train.log_every": 4,
            "train.sample_every": 2,
            "sampler.num_samples": 3,
            "sampler.batch_size": 2,
            "sampler.frames": 4,
            "sampler.save": "png",
        },
        {
            "data": {
                "name": "second",
                "split": "test",
                "data_dir": "there",
                "raw_dir": "raw",
                "memory_limit_mb": 3,
                "path": "photos",
                "image_size": (16,),
                "channels": "grey",
                "pattern": "ring",
                "num_examples": 7,
                "seed": 9,
            },
            "learning_rate": [0.125, 0.25],
            "params": None,
            "steps_per_call": 2,
            "logged": [4, 8],
            "grids": ["training_00000002.png", "training_00000004.png", "training_00000006.png"],
            "count": 3,
            "saved": [""],
            "sampled_at_once": 2,
            "frames": {"forward_process": 4, "_trajectory": 4},
        },
    ),
]


@pytest.mark.thorough
@pytest.mark.parametrize("changes, aspects", RUN_KEYS, ids=[next(iter(changes)) for changes, _ in RUN_KEYS])
def test_a_key_of_the_run_arrives(changes, aspects, run_job):
    old, new = run_job(), run_job(tuple(changes.items()))
    for aspect, expected in aspects.items():
        assert old[aspect] != new[aspect], aspect
        assert expected is None or new[aspect] == expected


@pytest.mark.thorough
def test_the_same_config_leaves_the_same_run(run_job):
    """Without which the tests above could not fail."""
    assert run_job.__wrapped__() == run_job()
    assert parts(smoke()) == parts(smoke())
    assert evaluation.__wrapped__(()) == evaluation(())
    assert updates(smoke()) == updates(smoke())


@pytest.mark.parametrize(
    "changes, grid",
    [
        ({}, "uniform"),  # ancestral
        ({"sampler.name": "dpmpp_2m"}, "log_snr"),
        ({"sampler.name": "dpmpp_2m", "process.name": "linear", "process.zero_terminal_snr": True}, "uniform"),
        ({"sampler.name": "ddim", "process.name": "edm"}, "log_snr"),
        ({"sampler.name": "dpmpp_2m", "sampler.grid": "karras"}, "karras"),
    ],
)
def test_a_sampler_takes_its_own_grid_where_none_is_named(changes, grid):
    """It is what acts, and its keys apply; the chain's first time is the same, the others are those of the grid."""
    config = smoke({"prediction.name": "v"} | changes)
    configs.validate(config)
    assert configs.acting("sampler.grid", config) == grid
    assert configs.is_default("sampler.grid", config) == ("sampler.grid" not in changes)
    process = construct(PROCESSES, config.process)
    np.testing.assert_array_equal(choose(config).grid, GRIDS[grid](process, steps=5))
    assert configs.applies("sampler.rho", config) == (grid == "karras")


# ------------------------------------------------------- every key arrives: what an evaluation computes


# key: (another value, what both configs also set)
EVAL_KEYS = {
    "eval.seed": (5, {}),
    "eval.solver": ("heun", {}),
    "eval.steps": (4, {}),
    "eval.grid": ("uniform", {}),
    "eval.rtol": (1e-3, {"eval.solver": "dopri5"}),
    "eval.atol": (1e-3, {"eval.solver": "dopri5"}),
    "eval.probe": ("gaussian", {}),
    "eval.probes": (2, {}),
    "eval.bound_steps": (900, {"process.name": "vp"}),
    "eval.bound_terms": (5, {}),
    "eval.variance": ("fixed_small", {}),
}
# What of the data is evaluated, and how much at once: see tests/evaluation.
EVAL_DATA_KEYS = {"eval.bpd": True, "eval.split": "train", "eval.num_examples": 3, "eval.batch_size": 3}
EVAL_DATA_KEYS |= {"eval.loss_every": 8, "eval.loss_examples": 7}  # see tests/training/test_held_out.py


@functools.cache
def evaluation(changes):
    config = smoke({"network.name": "mlp"} | dict(changes))
    configs.validate(config)
    task = build(config, (2,))
    params = jax.eval_shape(task.init, jax.random.key(0))
    rows, places = jax.ShapeDtypeStruct((2, 2), np.float32), jax.ShapeDtypeStruct((2,), np.int32)
    return computation(bits_per_dimension.make_compute(task, config, (2,)), params, (), rows, None, places)


@pytest.mark.thorough
@pytest.mark.parametrize("key", EVAL_KEYS)
def test_a_key_of_the_evaluation_arrives(key):
    value, given = EVAL_KEYS[key]
    assert evaluation(tuple(given.items())) != evaluation((*given.items(), (key, value)))


# Other runs: see tests/tasks/test_guided.py.
GUIDE_KEYS = {"guidance.weak": "runs/weak", "guidance.classifier": "runs/classifier", "guidance.form": "mean"}

OTHER = {key: value for key, (value, _, _) in TASK_KEYS.items()} | OPTIMIZER_KEYS
OTHER |= {key: value for key, (*_, value) in OF_CHOICES.items()}
OTHER |= {key: value for key, (value, _) in EVAL_KEYS.items()} | EVAL_DATA_KEYS | GUIDE_KEYS
OTHER |= {key: value for key, (value, _) in INPAINT_KEYS.items()} | INPAINT_FILES
OTHER |= {"sampler.ema_width": 0.075, "sampler.checkpoint": 7, "train.init": "runs/x", "train.allow_changes": True}
OTHER |= {key: value for changes, _ in RUN_KEYS for key, value in changes.items()}


def test_every_key_is_in_one_of_the_tables():
    assert set(OTHER) == set(configs.KEYS)


# ------------------------------------------------------- the table of keys, and the validator


@pytest.mark.parametrize("key", configs.KEYS)
def test_a_key_accepts_its_default_and_refuses_other_types(key):
    default = configs.KEYS[key].default
    assert type(default) in (int, float, bool, str, tuple) and configs.KEYS[key].help
    configs.check_value(key, default)
    for wrong in (
        None,
        [1],
        {},
        1 if configs.KEYS[key].type is str else "word",
        1 if configs.KEYS[key].type is bool else True,
        (object(),),
        (None,),
    ):
        with pytest.raises(UserError, match=rf"config.{key} takes .*, found "):
            configs.check_value(key, wrong)


@pytest.mark.parametrize("key", [key for key, entry in configs.KEYS.items() if entry.type is float])
def test_floats_are_finite(key):
    for wrong in (float("nan"), float("inf"), -float("inf"), 1):
        with pytest.raises(UserError):
            configs.check_value(key, wrong)


@pytest.mark.parametrize("key", [key for key, entry in configs.KEYS.items() if entry.type is int])
def test_ints_are_in_range(key):
    for wrong in (-1, 2**40, 1.0):
        with pytest.raises(UserError):
            configs.check_value(key, wrong)


# Counts by which neither memory nor a program grows.
UNLIMITED = {
    "seed", "data.seed", "sampler.seed", "eval.seed", "data.memory_limit_mb", "optim.warmup_steps", "train.steps",
    "optim.schedule_steps", "ema.snapshot_every",
    "train.max_skips", "sampler.labels", "train.log_every", "train.sample_every",
    "train.checkpoint_every", "train.keep_last", "train.keep_every", "eval.loss_every",
    "sampler.ema", "sampler.checkpoint", "eval.num_examples", "eval.loss_examples",
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key, entry in configs.KEYS.items() if int in (entry.type, entry.element)])
def test_counts_have_limits(key):
    value = (2**31 - 1,) if configs.KEYS[key].type is tuple else 2**31 - 1
    if key in UNLIMITED:
        configs.check_value(key, value)
    else:
        with pytest.raises(UserError, match=rf"config.{key} takes .*(at most|of) [\d, ]+.*, found"):
            configs.check_value(key, value)


def test_tuples_have_limits():
    for key, entry in configs.KEYS.items():
        if entry.type is tuple:
            _, most, *_ = configs.KEYS[key].length
            with pytest.raises(UserError, match=f"config.{key} takes at most {most} .*, found {most + 1}"):
                configs.check_value(key, (entry.default or (0,))[:1] * (most + 1))


def test_the_limits_are_met_in_little_memory_and_time():
    """All at once: the whole of validation, which builds the process, the times and the grid."""
    large = {"process.steps": 100_000, "sampler.steps": 100_000, "times.name": "importance", "times.kept": 100}
    large |= {"ema.decays": (0.5,) * 16, "network.multipliers": (64,) * 16, "network.blocks": 64, "prediction.name": "v"}
    large |= {"eval.bound_steps": 100_000, "sampler.num_samples": 1_000_000}
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    configs.validate(smoke(large))
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 300_000  # KiB


ENDS = {"ema.decays": (0.0,), "sampler.eta": 1.0, "optim.clip_norm": 0.0, "seed": 2**32 - 1, "network.channels": 4}
BEYOND = {"ema.decays": (1.0,), "sampler.eta": 1.01, "optim.eps": 0.0, "train.steps": 0, "seed": 2**32, "network.channels": 2}


def test_ends_of_the_ranges():
    for key, value in ENDS.items():
        configs.check_value(key, value)
    for key, value in BEYOND.items():
        with pytest.raises(UserError):
            configs.check_value(key, value)


@pytest.mark.parametrize("key", [key for key, entry in configs.KEYS.items() if entry.type is tuple])
def test_an_example_of_a_tuple_is_accepted(key):
    for example in re.search(r", as (.*?)(, each|$)", configs.KEYS[key].kind())[1].split(" or "):
        config = configs.base()
        command.apply_override(config, key, example)
        assert len(configs.value_of(key, config)) == 2


def test_a_grid_of_another_length_names_what_makes_its_length():
    with pytest.raises(UserError) as caught:
        configs.validate(smoke({"sampler.grid": "explicit", "sampler.times": (1.0, 0.5)}))
    assert str(caught.value) == (
        "These settings do not go together: config.sampler.grid=explicit, config.sampler.steps=5, "
        "config.sampler.times=(1.0, 0.5). The reason: the explicit grid has 2 times: set config.sampler.steps=2."
    )


def test_how_samples_are_saved_takes_no_keys():
    """The functions that save share the name of a parameter with a key, which they do not take."""
    assert configs.chooser("sampler.labels") == ""


def test_an_average_that_there_is_not():
    with pytest.raises(UserError, match=r"sampler.ema is 2, but the run has 2 averages: take 0 for 0.9, 1 for 0.99\."):
        configs.validate(smoke({"ema.decays": (0.9, 0.99), "sampler.ema": 2}))
    with pytest.raises(UserError, match=r"ema.decays needs at least one decay .*, found \(\)"):
        configs.validate(smoke({"ema.decays": ()}))


LEARNS = {"loss.name": "hybrid", "loss.variance": "learned"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampler.variance": "learned_range"}, "loss.name=hybrid or vlb.*take one of fixed_small, fixed_large$"),
        (LEARNS | {"sampler.variance": "learned_range"}, "=learned_range, .*take one of fixed_small, fixed_large, learned$"),
        (LEARNS | {"sampler.variance": "learned"}, "of single steps of the chain: take all of them, sampler.steps=1000"),
        ({"loss.name": "hybrid", "loss.variance": "fixed_small"}, "and fixed_small is fixed: take loss.variance=learned_range"),
        ({"loss.name": "vlb", "process.name": "vp"}, "a chain of steps that ends in the data"),
        ({"loss.name": "vlb", "process.steps": 1, "sampler.steps": 1}, "take a beta table of two steps or more"),
        ({"times.name": "importance", "process.name": "vp"}, "at each step of a table"),
        ({"times.t_min": 2.0, "process.name": "vp"}, "times.t_min=2.0 leaves no time below t_max = 1"),
        ({"prediction.name": "edm", "loss.weighting": "edm", "loss.sigma_data": 0.3}, "loss.sigma_data=0.3 differ"),
    ],
)
def test_losses_times_and_variances_that_do_not_go_together(changes, words):
    with pytest.raises(UserError, match=f"do not go together: .*The reason: .*{words.replace('$', r'[.]$')}") as caught:
        configs.validate(smoke(changes))
    told = str(caught.value).partition("The reason")[0]
    for key, value in changes.items():
        assert f"config.{key}={value}" in told or (key, value) == ("sampler.steps", 1)
    assert len(told.split(",")) <= 7 and ("sampler" in told) == any(key.startswith("sampler.variance") for key in changes)


def test_a_learned_variance_is_sampled_with_where_it_was_learned():
    """Or with a fixed one, or by a sampler that asks for none."""
    full = {"process.steps": 5}
    for learned in ({"loss.name": "vlb"}, full | LEARNS):
        variance = learned.get("loss.variance", "learned_range")
        for changes in ({"sampler.variance": variance}, {"sampler.variance": "fixed_small"}, {"sampler.name": "ddim"}):
            configs.validate(smoke(learned | changes))
    configs.validate(smoke({"sampler.name": "ddim", "sampler.variance": "learned"}))


def test_flatten_and_unflatten():
    flat = {key: entry.default for key, entry in configs.KEYS.items()}
    assert configs.flatten(configs.base()) == flat
    assert configs.unflatten({"a.b": [1, 2], "c": 3}).to_dict() == {"a": {"b": (1, 2)}, "c": 3}
    assert configs.flatten(configs.unflatten(json.loads(json.dumps(flat)))) == flat


def test_a_config_shows_its_values():
    for text in (str(configs.base()), repr(configs.base())):
        assert "  eta: auto\n" in text and "seed: 0\n" in text and "object" not in text


def test_a_value_is_taken_as_the_keys_type_where_it_means_one():
    config = configs.base()
    config.sampler.update(eta=1, times=(1, 0.5), rate="auto", corrector=False)
    config.train.steps, config.ema.decays, config.network.attention = 1e4, 0, [4.0]
    found = (config.sampler.eta, *config.sampler.times, config.train.steps, *config.ema.decays, *config.network.attention)
    assert found == (1.0, 1.0, 0.5, 10_000, 0.0, 4) and list(map(type, found)) == [float] * 3 + [int, float, int]
    configs.validate(smoke({"ema.decays": [0, 0.5], "process.steps": 1e3, "sampler.corrector": True}))
    for key, value in {"sampler.eta": "half", "train.steps": 1.5, "sampler.corrector": 1, "train.log_every": "auto"}.items():
        section, leaf = key.split(".")
        with pytest.raises(TypeError, match=f"config.{key} takes .*, found {value!r}"):
            config[section][leaf] = value


def test_each_base_is_a_new_one():
    configs.base().train.steps = 1
    assert configs.base().train.steps == configs.KEYS["train.steps"].default


def test_a_key_applies_where_the_choice_takes_it():
    config = configs.base()
    assert configs.applies("sampler.variance", config) and not configs.applies("sampler.eta", config)
    config.sampler.name = "ddim"
    assert configs.applies("sampler.eta", config) and not configs.applies("sampler.variance", config)
    assert all(configs.applies(key, config) for key in ("sampler.steps", "train.steps", "seed"))
    assert not configs.applies("data.raw_dir", config) and configs.applies("data.split", config)
    config.data.name = "mnist"
    assert configs.applies("data.raw_dir", config)


@pytest.mark.parametrize("key", configs.KEYS)
def test_a_choices_own_default_holds(key):
    own = {name: default for name, default in configs.takers(key).items() if default is not None}
    default = configs.KEYS[key].default
    assert default == AUTO or all(value == default for value in own.values()), (
        f"{own} have defaults of their own for {key}, which its default {default!r} would override: make that AUTO"
    )


def test_a_constructor_of_ones_own_keeps_its_defaults(monkeypatch):
    """Unless the key is set; file names, facts, what a run is compared by and --help say which value acts."""

    def mine(*, eta: float = 1.0, order: int = 3):  # noqa: ARG001
        return ddim(eta=eta)

    monkeypatch.setitem(SAMPLERS, "mine", mine)
    monkeypatch.setitem(PROCESSES, "mine", lambda *, beta_max=5.0: PROCESSES["vp"](beta_max=beta_max))
    chosen = {"sampler.name": "mine", "process.name": "mine"}
    own, told = smoke(chosen), smoke(chosen | {"sampler.eta": 0.5, "process.beta_max": 7.0})
    for config, eta, beta_max in ((own, 1.0, 5.0), (told, 0.5, 7.0)):
        configs.validate(config)
        built = choose(config)
        assert jax.tree.leaves(built.sampler.step) == [eta]
        np.testing.assert_array_equal(built.process.log_alpha(0.3), PROCESSES["vp"](beta_max=beta_max).log_alpha(0.3))
        assert f"mine5_eta{eta:g}_seed0" in sampling.sample_name(config, 1)
        assert (sampling.how(config)["sampler"]["eta"], sampling.how(config)["sampler"]["order"]) == (eta, 3)
        assert configs.fixed(config)["process.beta_max"] == beta_max
    assert {"ddim": 0.0, "mine": 1.0}.items() <= configs.takers("sampler.eta").items()
    assert smoke({"sampler.name": "ddim"}).sampler.eta == AUTO


MADE_FROM_KEYS = [
    ("data", SOURCES), ("network", NETWORKS), ("process", PROCESSES), ("prediction", PREDICTIONS), ("loss", LOSSES),
    ("loss", WEIGHTINGS), ("times", TIMES), ("optim", OPTIMIZERS), ("optim", SCHEDULES), ("sampler", SAMPLERS),
    ("sampler", GRIDS),
    ("inpaint", INPAINTING),
]  # fmt: skip


@pytest.mark.parametrize("section, table", MADE_FROM_KEYS)
def test_every_choice_gets_all_that_it_requires(section, table):
    """From its section of the config, whose keys are all that it takes besides what it acts on."""
    acts_on = ("process", "keys", "sampler", "denoise", "image", "known", "decode", "rate")
    for name, constructor in table.items():
        parameters = [p for p in inspect.signature(constructor).parameters.values() if p.name not in acts_on]
        required = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
        assert required <= set(configs.base()[section]), name
        if section not in ("data", "network", "optim"):
            assert {parameter.name for parameter in parameters} <= set(configs.base()[section]), name


# What a run in progress has put into its parameters, key by key: a new key must be sorted into one of the two.
FIXED = {
    "task", "seed", "addresses", "data.name", "data.split", "data.image_size", "data.channels", "data.pattern",
    "data.num_examples", "data.seed", "data.flip", "cond.labels", "cond.dropout", "ema.decays", "ema.widths",
    "train.batch_size", "train.init",
    *(key for key in configs.KEYS if key.startswith(("network.", "optim.", "process.", "prediction.", "loss.", "times."))),
}  # fmt: skip
FREE = {
    "ema.snapshot_every", "data.data_dir", "data.raw_dir", "data.path", "data.memory_limit_mb", "train.steps",
    "train.steps_per_call",
    "train.log_every", "train.sample_every",
    "train.checkpoint_every", "train.keep_last", "train.keep_every", "train.micro_batches", "train.on_nonfinite",
    "train.max_skips", "train.debug_nans", "train.allow_changes",
    *(key for key in configs.KEYS if key.startswith(("sampler.", "guidance.", "inpaint.", "eval."))),
}  # fmt: skip


# In which a key acts that does not act in the base config.
GIVEN = {key: given for key, (_, _, given) in TASK_KEYS.items()}
GIVEN |= {key: {"data.name": "toy2d"} for key in ("data.pattern", "data.num_examples", "data.seed")}
GIVEN |= {key: {"ema.widths": (0.1,)} for key in ("ema.snapshot_every", "sampler.ema_width")}
GIVEN |= {key: {"data.name": "folder"} for key in ("data.image_size", "data.channels")}
GIVEN |= {key: {"optim.name": name, "optim.schedule": schedule} for key, (name, schedule, _) in OF_CHOICES.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("key", configs.KEYS)
def test_what_may_change_when_a_run_is_continued(key, monkeypatch):
    monkeypatch.setitem(NETWORKS, OTHER["network.name"], NETWORKS["unet"])
    monkeypatch.setitem(OPTIMIZERS, OTHER["optim.name"], OPTIMIZERS["adam"])
    base = configs.flatten(configs.base()) | GIVEN.get(key, {})
    one, other = configs.unflatten(base), configs.unflatten(base | {key: OTHER[key]})
    told = f"{key}: {configs.acting(key, one)!r} -> {OTHER[key]!r}"
    assert configs.differences(one, other) == ([told] if key in FIXED else [])
    assert (key in FIXED) != (key in FREE)


def test_what_does_nothing_is_no_difference():
    """And a default written out is none either."""
    idle = smoke({"process.beta_max": 5.0, "loss.gamma": 2.0, "sampler.eta": 0.5})
    assert configs.differences(smoke(), idle) == []
    assert configs.differences(smoke(), smoke({"process.steps": 1000, "process.beta_end": 0.02})) == []
    assert configs.differences(smoke({"process.name": "vp"}), smoke({"process.name": "vp", "process.beta_max": 5.0})) == [
        "process.beta_max: 20.0 -> 5.0"
    ]


def test_all_the_differences_are_told():
    changed = smoke({"optim.b1": 0.5, "seed": 1})
    assert configs.differences(smoke(), changed) == ["seed: 0 -> 1", "optim.b1: 0.9 -> 0.5"]
    assert configs.differences(smoke(), smoke()) == []
