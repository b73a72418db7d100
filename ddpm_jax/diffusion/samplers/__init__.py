"""Samplers: how a state at time t becomes a state at s < t.

A sampler is (init, step). step(denoise, process, x, memory, at) -> (x, mean, memory), where `mean` leaves out the last
noise of the step and `at` says where it stands. It knows of no scan, key or network; `sample` owns these. A new sampler is a
step, a constructor that states its order, and a row of `SAMPLERS`; `oracle` says how to see whether it is right, and
tests/diffusion/test_samplers.py looks at every row.
"""

from collections.abc import Callable

from ddpm_jax.diffusion.samplers.chain import adjusted_ddim, ancestral, ddim, euler_ancestral, generalized_ddim
from ddpm_jax.diffusion.samplers.core import At, Sampler, count_evaluations, repeat
from ddpm_jax.diffusion.samplers.dpm_solver import (
    dpm_fast,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3s,
)
from ddpm_jax.diffusion.samplers.flow import adaptive_ode, churned, euler, heun
from ddpm_jax.diffusion.samplers.multistep import UNIPC_B, deis, lms, plms, pndm, unipc
from ddpm_jax.diffusion.samplers.renoised import dpm_solver_2_ancestral, dpmpp_2s_ancestral, dpmpp_sde
from ddpm_jax.diffusion.samplers.sde import (
    NORMS,
    PREDICTORS,
    annealed_langevin,
    corrected,
    euler_maruyama,
    predictor_corrector,
    reverse_diffusion,
)
from ddpm_jax.diffusion.samplers.sde_multistep import SLOPES, sa_solver, sde_dpmpp_2m, sde_dpmpp_3m

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler_ancestral": euler_ancestral,
    "generalized_ddim": generalized_ddim,
    "adjusted_ddim": adjusted_ddim,
    "euler": euler,
    "heun": heun,
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "predictor_corrector": predictor_corrector,
    "annealed_langevin": annealed_langevin,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_2_ancestral": dpm_solver_2_ancestral,
    "dpm_solver_3": dpm_solver_3,
    "dpm_fast": dpm_fast,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "sde_dpmpp_3m": sde_dpmpp_3m,
    "sa_solver": sa_solver,
    "unipc": unipc,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "deis": deis,
    "adaptive_ode": adaptive_ode,
}
# The grid of `grids.GRIDS` that a sampler takes where none is named. Of the second order and up: evenly in log-SNR. On 18
# processes, with 20 points and a Gaussian of deviation 0.316, these end at 0.81 to 1.42 of that deviation, and with even times
# at 0.04 to 31 of it. The others keep the even times of their papers, which with all steps of a chain are the chain; but of a
# process whose time is sigma, where they would make one step of sigma_max / N.
BEST_GRIDS: dict[str, str] = dict.fromkeys(SAMPLERS, "log_snr") | dict.fromkeys(
    (
        "ancestral", "ddim", "euler_ancestral", "generalized_ddim", "adjusted_ddim", "euler", "euler_maruyama",
        "reverse_diffusion", "predictor_corrector", "annealed_langevin", "adaptive_ode",
    ),
    "uniform",
)  # fmt: skip
TIME_IS_SIGMA = ("edm",)
__all__ = [
    "BEST_GRIDS", "TIME_IS_SIGMA",
    "NORMS", "PREDICTORS", "SLOPES", "UNIPC_B", "At", "Sampler", "churned", "corrected", "count_evaluations", "repeat",
    "SAMPLERS",
    *SAMPLERS,
]  # fmt: skip
