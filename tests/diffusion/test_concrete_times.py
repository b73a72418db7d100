"""No public function of time takes a time that does not exist."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from ddpm_jax import diffusion
from ddpm_jax.diffusion import guidance, inverse, oracle, predictions, transforms
from ddpm_jax.diffusion.edit import noised
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.posterior import small_variance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import ddim

X = jnp.ones((2, 1))
DATA = oracle.gaussian([0.5], [[0.3]])
TABLE = PROCESSES["linear"]()
EXACT = oracle.denoiser(DATA, TABLE)

# What every function of t gets besides, by the names of its parameters.
GIVEN = {
    "process": TABLE, "denoise": EXACT, "data": DATA, "x": X, "x0": X, "eps": X, "w": X, "output": X, "raw": X, "gradient": X,
    "images": X, "prediction": predictions.Prediction(X, X), "variance": small_variance, "s": 0.1, "classes": 1, "low": 0.0,
    "high": 1.0, "scale": 1.0, "other": 1.0, "keys": jax.random.split(jax.random.key(0), 2),
    "source": predictions.v(), "target": predictions.eps(), "apply": lambda x, *_: x, "weighting": lambda *_: 1.0,
}  # fmt: skip
NOT_OF_A_PROCESS = {"derivative"}  # of any function


def public_functions_of_t():
    for module in pkgutil.iter_modules(diffusion.__path__, "ddpm_jax.diffusion."):
        module = importlib.import_module(module.name)
        for name, f in inspect.getmembers(module, inspect.isfunction):
            ours = f.__module__ == module.__name__ and not name.startswith("_") and name not in NOT_OF_A_PROCESS
            if ours and "t" in inspect.signature(f).parameters:
                yield pytest.param(f, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for name in ("log_snr", "drift", "diffusion2"):
        yield pytest.param(getattr(Process, name), id=f"Process.{name}")


@pytest.mark.parametrize("f", [*public_functions_of_t()])
@pytest.mark.parametrize("t", [500, jnp.array([0.5, 1.5]), jnp.nan])
def test_functions_of_t(f, t):
    """Each raises for a time beyond the end, and where nothing is wrong does not."""
    required = [name for name, p in inspect.signature(f).parameters.items() if p.default is inspect.Parameter.empty]
    given = {"self": TABLE, **GIVEN}
    given = {name: given[name] for name in required if name != "t"}  # a KeyError: say above what a new function gets
    with pytest.raises(ValueError, match=r"t must lie in \[0, t_max = 1\], found"):
        f(**given, t=t)


DENOISERS = {
    "oracle": EXACT,
    "network": predictions.network_denoiser(lambda x, *_: x, TABLE, predictions.v()),
    "clipped": transforms.clipped(EXACT, TABLE),
    "thresholded": guidance.dynamic_thresholding(EXACT, TABLE, percentile=99.0),
    "guided": guidance.classifier_free(lambda x, t: (EXACT(x, t), EXACT(x, t)), TABLE, scale=2.0),
    "classified": guidance.classifier_guidance(EXACT, TABLE, lambda x, _: x.sum(1), scale=2.0),
    "shifted": guidance.mean_shift(EXACT, TABLE, lambda x, _: x.sum(1), scale=2.0),
    "measured": inverse.moment_matched(EXACT, TABLE, Partial(lambda x: x), X),
    "known": inverse.known_x0(EXACT, TABLE, X, X == 1, 0.1),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers(name):
    """Of a table a step's number is told from its time; inside a compiled function nothing is looked at."""
    words = r"found 500: step n of this table, n = 1 .. 1000, is at the time t = n/1000, as step 500 at 0.5(\n|$)"
    with pytest.raises(ValueError, match=words):
        DENOISERS[name](X, jnp.array([500, 500]))
    with pytest.raises(ValueError, match="found -0.5(\n|$)"):
        DENOISERS[name](X, -0.5)
    with pytest.raises(ValueError, match="t must be a number or an array of them, found '0.5'"):
        DENOISERS[name](X, "0.5")
    assert jax.eval_shape(DENOISERS[name], X, 500.0).x0.shape == X.shape
    if name == "network":
        DENOISERS[name](X, jnp.array([1, 1]))


@pytest.mark.parametrize(
    "call",
    [
        lambda keys: sample(ddim(), EXACT, TABLE, jnp.arange(1000, 0, -100), keys, (1,)),
        lambda _: encode(ddim(), EXACT, TABLE, jnp.arange(100, 1000, 100), X),
        lambda keys: noised(TABLE, 500, keys, X),
        lambda _: GRIDS["explicit"](TABLE, times=(1000.0, 500.0)),
    ],
)
def test_grids_of_step_numbers(call):
    with pytest.raises(ValueError, match="step n of this table, n = 1 .. 1000, is at the time t = n/1000, as step [0-9]+ at "):
        call(sample_keys(0, jnp.arange(2)))


@pytest.mark.parametrize("grid", ["uniform", "karras"])
def test_lower_ends(grid):
    with pytest.raises(ValueError, match=r"t_min must lie in \[0, t_max = 1\], found 2"):
        GRIDS[grid](PROCESSES["vp"](), steps=5, t_min=2.0)
