"""What samplers and grids are called elsewhere, and here: for error messages and docs/samplers.md."""

# A name of diffusers (schedulers), of k-diffusion (its functions without "sample_") or of ComfyUI: the sampler here, and the
# settings that make it the same method. Names that mean the same here are not listed, and methods that are not here neither.
SAMPLERS_ELSEWHERE: dict[str, str] = {
    "DDPMScheduler": "ancestral, variance=fixed_small",
    "DDPMParallelScheduler": "ancestral, variance=fixed_small",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "PNDMScheduler": "pndm; with skip_prk_steps plms",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun, on process.name=edm",
    "KDPM2DiscreteScheduler": "dpm_solver_2",
    "KDPM2AncestralDiscreteScheduler": "dpm_solver_2_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m; of solver_order 3 dpmpp_3m, published=true; of sde-dpmsolver++ sde_dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s; of solver_order 3 dpmpp_3s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DEISMultistepScheduler": "deis, published=true",
    "UniPCMultistepScheduler": "unipc",
    "SASolverScheduler": "sa_solver",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m, on process.name=edm",
    "CosineDPMSolverMultistepScheduler": "sde_dpmpp_2m, on process.name=edm",
    "FlowMatchEulerDiscreteScheduler": "euler, on process.name=rectified_flow",
    "FlowMatchHeunDiscreteScheduler": "heun, on process.name=rectified_flow",
    "ScoreSdeVeScheduler": "predictor_corrector, norms=batch",
    "RePaintScheduler": "ancestral, with inpaint.method=repaint",
    "ddpm": "ancestral, variance=fixed_small",
    "euler_a": "euler_ancestral",
    "dpm_2": "dpm_solver_2",
    "kdpm2": "dpm_solver_2",
    "dpm2": "dpm_solver_2",
    "dpm_2_ancestral": "dpm_solver_2_ancestral",
    "dpm2_a": "dpm_solver_2_ancestral",
    "dpm_adaptive": "adaptive_ode, another method to a tolerance",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpmpp_2m_sde": "sde_dpmpp_2m",
    "dpmpp_2m_sde_heun": "sde_dpmpp_2m, slope=heun",
    "dpmpp_3m_sde": "sde_dpmpp_3m, published=true, lower_order_final=false",
    "uni_pc": "unipc, order=3, variant=bh1",
    "uni_pc_bh2": "unipc, order=3",
    "addim": "adjusted_ddim",
    "gddim": "generalized_ddim",
}
GRIDS_ELSEWHERE: dict[str, str] = {
    "linspace": "uniform",
    "normal": "uniform",
    "sgm_uniform": "trailing",
    "ddim_uniform": "leading",
    "exponential": "log_snr",
    "lu_lambdas": "log_snr",
}


def here(name: str, elsewhere: dict[str, str]) -> str | None:
    """What a name of one of these tables is here, whatever its case and k-diffusion's prefix; None for others."""
    folded = {other.lower(): ours for other, ours in elsewhere.items()}
    return folded.get(name.lower().removeprefix("sample_"))
