"""Writes trajectories.npz: the states of diffusers' schedulers, step by step, for tests/diffusion/test_trajectories.py.

    python tests/peers/trajectories.py      # in an environment with the packages of requirements.txt here and NumPy

In float64 (their modules are given float64 for float32), with a fixed network and fixed noise, which the file holds. How their
schedulers are to be read is said in test_diffusers.py.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import schedulers

FILE = Path(__file__).parent / "trajectories.npz"
T, N, CHANNELS = 1000, 10, 2
RANDOM = np.random.default_rng(0)
START, NOISE = RANDOM.normal(size=(3, CHANNELS)), RANDOM.normal(size=(N + 1, 3, CHANNELS))
MIX, RATES = 0.5 * RANDOM.normal(size=(CHANNELS, CHANNELS)), np.linspace(0.05, 0.3, CHANNELS)
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TO_SIGMA_MIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}

# name: (scheduler, its config, arguments of its step)
SCHEDULERS = {
    "ancestral small": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}, {}),
    "ancestral": ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "linspace", "variance_type": "fixed_large"}, {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, {}),
    "ddim 0.5": ("DDIMScheduler", {"clip_sample": False}, {"eta": 0.5}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", LATENT | TO_SIGMA_MIN, {}),
    "sde_dpmpp_2m": ("DPMSolverMultistepScheduler", LATENT | TO_SIGMA_MIN | {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpmpp_3m published": ("DPMSolverMultistepScheduler", LATENT | TO_SIGMA_MIN | {"solver_order": 3}, {}),
    "unipc 1": ("UniPCMultistepScheduler", LATENT | TO_SIGMA_MIN | {"solver_order": 1}, {}),
    "unipc": ("UniPCMultistepScheduler", LATENT | TO_SIGMA_MIN | {"solver_order": 2}, {}),
    "unipc 3": ("UniPCMultistepScheduler", LATENT | TO_SIGMA_MIN | {"solver_order": 3}, {}),
    "unip 2": ("UniPCMultistepScheduler", LATENT | TO_SIGMA_MIN | {"solver_order": 2, "disable_corrector": range(N)}, {}),
    "deis": ("DEISMultistepScheduler", LATENT | {"solver_order": 2, "lower_order_final": False}, {}),
    "deis 3 published": ("DEISMultistepScheduler", LATENT | {"solver_order": 3, "lower_order_final": False}, {}),
    "plms": ("PNDMScheduler", LATENT | {"skip_prk_steps": True, "set_alpha_to_one": True}, {}),
    "pndm": ("PNDMScheduler", LATENT | {"set_alpha_to_one": True}, {}),
}


class Double:
    """A module in which float32 is float64."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


def network(x, index):
    """A bounded eps of x [B, C] at the index n - 1 of a table."""
    fresh = np.exp(-5 * (index / T) ** 2)
    return np.sqrt(1 - fresh**2) * x + fresh * np.tanh(x @ MIX + np.cos(RATES * index))


def ends_a_transition(scheduler):
    """Of PNDM, whose first transitions take several calls; another's take one."""
    if not isinstance(scheduler, schedulers.PNDMScheduler):
        return True
    return scheduler.counter != 1 if scheduler.config.skip_prk_steps else scheduler.counter > 12 or scheduler.counter % 4 == 0


def trajectory(name, config, arguments):
    """(indices of their grid, states after each transition)."""
    scheduler = getattr(schedulers, name)(**config)
    scheduler.set_timesteps(N)
    x, states, module = torch.tensor(START), [], sys.modules[type(scheduler).__module__]
    for index in scheduler.timesteps:
        output = torch.tensor(network(x.numpy(), float(index)))
        with mock.patch.object(module, "randn_tensor", lambda *_, **__: torch.tensor(NOISE[len(states)]), create=True):
            x = scheduler.step(output, index, x, **arguments).prev_sample
        if ends_a_transition(scheduler):
            states.append(x.numpy())
    return list(dict.fromkeys(int(index) for index in scheduler.timesteps)), np.stack(states)


def main():
    for name, *_ in SCHEDULERS.values():
        getattr(schedulers, name)  # imports it
    for module in [module for name, module in sys.modules.items() if name.startswith("diffusers.schedulers.")]:
        for name in {"torch", "np"} & set(vars(module)):
            setattr(module, name, Double(getattr(module, name)))
    torch.set_default_dtype(torch.float64)
    found = {"start": START, "noise": NOISE, "mix": MIX, "rates": RATES}
    for name, row in SCHEDULERS.items():
        indices, states = trajectory(*row)
        found |= {f"{name}/indices": indices, f"{name}/states": states}
        print(f"{name:20} {indices} {states[-1][0]}")
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
