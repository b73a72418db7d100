"""Variants: functions that edit a config, usable with every data set. `--config=configs/mnist.py:ddim,smoke`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.construct import AUTO
from ddpm_jax.errors import UserError
from ddpm_jax.spelling import nearest


class Variant(NamedTuple):
    """What it edits, and the group of which a config takes at most one."""

    edit: Callable[[ConfigDict], None]
    group: str


def ddpm(config: ConfigDict) -> None:
    """the ancestral sampler on all steps of the chain, fixed large variance (Ho et al. 2020)"""
    steps = configs.acting("process.steps", config)
    config.sampler.update(name="ancestral", grid=AUTO, variance="fixed_large", steps=1000 if steps == AUTO else steps)


def ddim(config: ConfigDict) -> None:
    """the deterministic DDIM sampler in 50 steps (Song et al. 2021)"""
    config.sampler.update(name="ddim", steps=50, grid=AUTO, eta=0.0)


def _learn(config, process, prediction, weighting, times="uniform"):
    config.process.name, config.prediction.name = process, prediction
    config.loss.update(name="denoising", weighting=weighting)
    config.times.name = times


def _score_sde(config, process):
    _learn(config, process, "eps", "simple")
    config.sampler.update(name="euler_maruyama", steps=1000, grid=AUTO, clip="none")


def vp(config: ConfigDict) -> None:
    """the variance-preserving SDE, Euler-Maruyama on its reverse (Song et al. 2021, score SDE)"""
    _score_sde(config, "vp")


def subvp(config: ConfigDict) -> None:
    """the sub-VP SDE, Euler-Maruyama on its reverse (Song et al. 2021, score SDE)"""
    _score_sde(config, "sub_vp")


def ve(config: ConfigDict) -> None:
    """the variance-exploding SDE, Euler-Maruyama on its reverse (Song et al. 2021, score SDE)"""
    _score_sde(config, "ve")


def edm(config: ConfigDict) -> None:
    """preconditioning, loss, noise levels and the 18-step Heun sampler of Karras et al. 2022"""
    _learn(config, "edm", "edm", "edm", "log_normal")
    config.sampler.update(name="heun", steps=18, grid="karras", clip="none")


def flow(config: ConfigDict) -> None:
    """rectified flow: the velocity on straight paths, 50 steps of Euler's method (Liu et al. 2023)"""
    _learn(config, "rectified_flow", "velocity", "velocity")
    config.sampler.update(name="euler", steps=50, grid="trailing", clip="none")


def v(config: ConfigDict) -> None:
    """v-prediction on the cosine schedule in continuous time, 50 steps of DDIM (Salimans & Ho 2022)"""
    _learn(config, "continuous_cosine", "v", "v")
    config.sampler.update(name="ddim", steps=50, grid="trailing", eta=0.0)


def improved(config: ConfigDict) -> None:
    """4000 cosine steps, the hybrid loss with a learned variance, ancestral in 100 of them (Nichol & Dhariwal 2021)"""
    _learn(config, "cosine", "eps", "simple")
    config.process.steps = 4000
    config.loss.update(name="hybrid", variance="learned_range")
    config.sampler.update(name="ancestral", steps=100, grid=AUTO, variance="learned_range")


def improved_vlb(config: ConfigDict) -> None:
    """as improved, trained on the variational bound alone, at importance-sampled times (Nichol & Dhariwal 2021)"""
    improved(config)
    config.loss.name, config.times.name = "vlb", "importance"


def ncsn(config: ConfigDict) -> None:
    """232 levels of noise up to 50, eps with the weight sigma^2, five Langevin steps on each (Song & Ermon 2020, NCSNv2)"""
    _learn(config, "ncsn", "eps", "ncsn")
    config.process.steps = 232
    config.sampler.update(name="annealed_langevin", steps=232, grid=AUTO, langevin_steps=5, rate=0.062)
    config.sampler.clip = "none"


def min_snr(config: ConfigDict) -> None:
    """x0-prediction on the cosine table, the min-SNR weighting with gamma 5 (Hang et al. 2023)"""
    _learn(config, "cosine", "x0", "min_snr")
    config.loss.gamma = 5.0


def cond(config: ConfigDict) -> None:
    """a network that is shown labels, a tenth of them left out: for samples of a class, and classifier-free guidance"""
    config.cond.update(labels=True, dropout=0.1)


def smoke(config: ConfigDict) -> None:
    """the whole job in seconds on a CPU: a tiny network, a few steps, a checkpoint, samples"""
    config.network.update(channels=8, groups=2, multipliers=(1, 2), blocks=1, attention=(), heads=1)
    config.optim.update(warmup_steps=2)
    config.train.update(steps=8, batch_size=16, steps_per_call=0, log_every=2, sample_every=4, checkpoint_every=4)
    config.sampler.update(steps=5, num_samples=4, batch_size=4)
    config.eval.update(num_examples=4, batch_size=4, solver="rk4", steps=3, bound_terms=4)


VARIANTS: dict[str, Variant] = {
    "ddpm": Variant(ddpm, "sampler"),
    "ddim": Variant(ddim, "sampler"),
    "vp": Variant(vp, "process"),
    "subvp": Variant(subvp, "process"),
    "ve": Variant(ve, "process"),
    "edm": Variant(edm, "process"),
    "flow": Variant(flow, "process"),
    "v": Variant(v, "process"),
    "improved": Variant(improved, "process"),
    "improved_vlb": Variant(improved_vlb, "process"),
    "ncsn": Variant(ncsn, "process"),
    "min_snr": Variant(min_snr, "process"),
    "cond": Variant(cond, "conditioning"),
    "smoke": Variant(smoke, "size"),
}


def split(names: str) -> list[str]:
    """ "ddim, smoke" -> ["ddim", "smoke"]."""
    return [name.strip() for name in names.split(",") if name.strip()]


def apply(
    config: ConfigDict,
    names: str,
    published: Mapping[str, Callable[[ConfigDict], None]] | None = None,
    own: Mapping[str, Variant] | None = None,
) -> ConfigDict:
    """Edits the config by the comma-separated variants, left to right, `smoke` last, and checks its values.

    published: what a variant's paper sets besides on this data set, by the variant's name; applied right after the variant.
    own: variants of this config file alone.
    Raises UserError for an unknown variant, one given twice, or two of one group.
    """
    chosen, known = split(names), {**(own or {}), **VARIANTS}
    taken: dict[str, str] = {}
    for name in chosen:
        if name not in known:
            near = nearest(name, known)
            raise UserError(
                f"There is no variant {name!r}; the variants are {', '.join(known)}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
        group = known[name].group
        if taken.get(group) == name:
            raise UserError(f"The variant {name} is given twice: give it once.")
        if group in taken:
            raise UserError(f"The variants {taken[group]} and {name} both choose the {group}: give one of them.")
        taken[group] = name
    for name in sorted(chosen, key=lambda name: name == "smoke"):
        known[name].edit(config)
        if published and name in published:
            published[name](config)
    configs.check(config)
    return config
