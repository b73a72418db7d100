"""docs/ says what the tables of the code say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import config as configs
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.samplers import SAMPLERS, At, count_evaluations
from ddpm_jax.diffusion.samplers.names import GRIDS_ELSEWHERE, SAMPLERS_ELSEWHERE, here
from ddpm_jax.errors import UserError

PAGE = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()


def test_every_sampler_is_on_its_page_with_its_order():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 5]
    orders = {}
    for row in rows:
        names = [name for name in re.findall(r"`([a-z0-9_]+)`", row[0]) if name in SAMPLERS]
        stated = row[3].strip().split(", ")
        for i, name in enumerate(names):
            orders.setdefault(name, stated[i % len(stated)])
    highest = {"unipc": {"order": 3}, "deis": {"order": 3}}
    wanted = {name: str(make(**highest.get(name, {})).order or "") for name, make in SAMPLERS.items()}
    assert {name: order.removeprefix("up to ") for name, order in orders.items()} == wanted


def test_every_sampler_costs_what_its_page_says():
    """The evaluations of a step amid the chain; two have as many as they need or are told."""
    process, x, counted = PROCESSES["vp"](), jnp.zeros((1, 2)), set()
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 5]
    for row in rows:
        names = [name for name in re.findall(r"`([a-z0-9_]+)`", row[0]) if name in SAMPLERS]
        stated = row[2].strip().split(", ")
        for i, name in enumerate(names):
            if stated[0].isdecimal():
                sampler = SAMPLERS[name]()
                denoise, in_loop, spent = count_evaluations(lambda x, t: Prediction(x, x))  # noqa: ARG005
                at = At(jnp.asarray(0.6), jnp.asarray(0.5), jnp.asarray(4), 9, lambda j: x, in_loop)  # noqa: ARG005
                jax.eval_shape(lambda x, of=sampler, on=denoise, at=at: of.step(on, process, x, of.init(x), at)[0], x)
                assert spent() == int(stated[i % len(stated)]), name
                counted.add(name)
    assert SAMPLERS.keys() - counted == {"annealed_langevin", "adaptive_ode"}


@pytest.mark.parametrize("key, elsewhere, ours", [
    ("sampler.name", SAMPLERS_ELSEWHERE, SAMPLERS), ("sampler.grid", GRIDS_ELSEWHERE, GRIDS),
])  # fmt: skip
def test_names_of_others_are_refused_with_what_they_are_here(key, elsewhere, ours):
    for name, meaning in elsewhere.items():
        assert f"| `{name}` | {meaning} |" in PAGE, f"docs/samplers.md lacks {name}, or says something else of it"
        assert name not in ours and re.split("[;, ]", meaning)[0] in ours
        for setting in re.findall(r"([a-z_.]+)=([a-z0-9_]+)", meaning):
            known = setting[0] if "." in setting[0] else f"sampler.{setting[0]}"
            assert known in configs.KEYS, f"{name}: there is no {known}"
        for typed in (name, name.upper(), f"sample_{name}"):
            assert here(typed, elsewhere) == meaning
        with pytest.raises(UserError, match=re.escape(f"is here {meaning}.")):
            configs.check_value(key, name)
