import itertools
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import command
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
GROUPS = sorted({entry.group for entry in variants.VARIANTS.values()})
# Every way to choose at most one variant of each group; pairs in both orders.
CHOICES = [
    order
    for chosen in itertools.product(*([""] + [n for n, e in variants.VARIANTS.items() if e.group == g] for g in GROUPS))
    for names in [tuple(name for name in chosen if name)]
    for order in ([names, names[::-1]] if len(names) == 2 else [names])
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, names",
    [
        pytest.param(path.stem, ",".join(names), marks=[] if len(names) <= 1 or path.stem == "digits" else pytest.mark.full)
        for path, names in itertools.product(CONFIGS, CHOICES)
    ],
)
def test_every_config_takes_every_variant(name, names):
    """But a classifier, which is shown no labels. Every choice of them on digits, on the others each alone; in full, all."""
    spec = f"{CONFIGS[0].parent / name}.py:{names}"
    if name.endswith("_classifier") and "cond" in names:
        with pytest.raises(UserError, match="labels that a classifier .* is to find: leave it out"):
            command.load(spec)
    else:
        configs.validate(command.load(spec))


def test_there_are_configs_and_variants():
    assert {"digits", "mnist"} <= {path.stem for path in CONFIGS}
    assert {"ddpm", "ddim", "smoke"} <= set(variants.VARIANTS)
    assert ("smoke", "ddim") in CHOICES and () in CHOICES


def flat(names, **changes):
    return configs.flatten(variants.apply(configs.unflatten(configs.flatten(configs.base()) | changes), names))


def test_what_they_edit():
    assert flat("") == configs.flatten(configs.base())
    ddim = flat("ddim", **{"sampler.eta": 0.5})
    assert (ddim["sampler.name"], ddim["sampler.steps"], ddim["sampler.eta"]) == ("ddim", 50, 0.0)
    other = {"process.steps": 200, "sampler.steps": 20, "sampler.name": "ddim", "sampler.variance": "fixed_small"}
    ddpm = flat("ddpm", **other)
    assert (ddpm["sampler.name"], ddpm["sampler.steps"], ddpm["sampler.variance"]) == ("ancestral", 200, "fixed_large")
    smoke = flat("smoke")
    assert smoke["train.checkpoint_every"] < smoke["train.steps"] <= 10 and smoke["network.channels"] <= 8


def test_each_samples_as_its_paper_does():
    """x0 is clipped by DDPM's code, improved diffusion's and that of progressive distillation, by the others not; the steps of
    flow and v are equal, down to the data. EDM's Adam has its epsilon in the unit of a sum of 3072 squared errors."""
    processes = [name for name, entry in variants.VARIANTS.items() if entry.group == "process"]
    unclipped = {name for name in processes if flat(name)["sampler.clip"] == "none"}
    assert unclipped == {"vp", "subvp", "ve", "edm", "flow", "ncsn"}
    assert flat("flow")["sampler.grid"] == flat("v")["sampler.grid"] == "trailing"
    times = GRIDS["trailing"](PROCESSES["rectified_flow"](), steps=5)
    np.testing.assert_allclose(times, [1, 0.8, 0.6, 0.4, 0.2], atol=1e-3)  # and the denoising at 0.2 is Euler's step to 0
    assert command.load(f"{CONFIGS[0].parent / 'cifar10'}.py:edm").optim.eps == 1e-8 / 3072


def test_smoke_is_applied_last_whatever_the_order():
    assert flat("smoke,ddim") == flat("ddim,smoke") == flat(" ddim , smoke,")
    assert flat("smoke,ddim")["sampler.steps"] == flat("smoke")["sampler.steps"]
    assert flat("smoke,ddim")["sampler.name"] == "ddim"


def test_the_others_are_applied_left_to_right(monkeypatch):
    seen = []
    for name in ("one", "two", "three"):
        monkeypatch.setitem(variants.VARIANTS, name, variants.Variant(lambda _, name=name: seen.append(name), name))
    variants.apply(configs.base(), "three,smoke,one,two")
    assert seen == ["three", "one", "two"]


def test_smoke_is_small_whatever_it_edits():
    """Settings of a large run that would not go with a tiny one."""
    flat("smoke", **{"network.heads": 16, "train.steps_per_call": 50, "train.log_every": 50, "network.attention": (16, 8)})
    assert flat("smoke", **{"network.heads": 16})["network.heads"] == 1
    assert flat("smoke", **{"train.steps_per_call": 50})["train.steps_per_call"] == 0


def test_they_share_no_state():
    """Editing one config leaves the next one, the base and the table of keys as they were."""
    before = configs.flatten(configs.base())
    first = variants.apply(configs.base(), "ddim,smoke")
    first.network.multipliers = (3,)
    first.train.steps = 1
    assert configs.flatten(configs.base()) == before == {key: entry.default for key, entry in configs.KEYS.items()}
    assert flat("ddim,smoke")["train.steps"] == 8 and flat("ddim,smoke")["network.multipliers"] == (1, 2)


def test_what_they_make_is_validated(monkeypatch):
    def broken(config):
        config.optim.b1 = 2.0

    monkeypatch.setitem(variants.VARIANTS, "broken", variants.Variant(broken, "broken"))
    with pytest.raises(UserError, match="config.optim.b1 takes a float"):
        variants.apply(configs.base(), "broken")
    with pytest.raises(UserError, match="process.steps=20.*sampler.steps=50.* 50 different steps on a table of 20"):
        configs.validate(configs.unflatten(flat("ddim", **{"process.steps": 20, "sampler.steps": 20})))
