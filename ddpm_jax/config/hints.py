"""What a mistyped key or value may mean."""

from typing import Any

from ddpm_jax.config.keys import KEYS
from ddpm_jax.diffusion.samplers.names import GRIDS_ELSEWHERE, SAMPLERS_ELSEWHERE, here
from ddpm_jax.errors import UserError
from ddpm_jax.spelling import nearest

# What other codes call our sections and keys.
OTHER_SECTIONS = {
    "optimizer": "optim", "opt": "optim", "model": "network", "net": "network", "unet": "network", "dataset": "data",
    "training": "train", "trainer": "train", "sampling": "sampler", "diffusion": "process", "schedule": "process",
    "scheduler": "process", "sde": "process", "cfg": "guidance", "evaluation": "eval", "conditioning": "cond",
}  # fmt: skip

VARIANCES_ELSEWHERE = {"small": "fixed_small", "large": "fixed_large", "fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}
# What choices are called by others, and were called here.
ELSEWHERE = {"sampler.name": SAMPLERS_ELSEWHERE, "sampler.grid": GRIDS_ELSEWHERE} | dict.fromkeys(
    ("sampler.variance", "loss.variance", "eval.variance"), VARIANCES_ELSEWHERE
)

NAMES = {
    "optim.learning_rate": "lr lrate learningrate",
    "optim.warmup_steps": "warmup lr_warmup warmup_iters lr_warmup_steps",
    "optim.clip_norm": "grad_clip gradient_clip max_grad_norm clip_grad grad_norm",
    "optim.b1": "beta1 adam_beta1",
    "optim.b2": "beta2 adam_beta2",
    "optim.eps": "epsilon adam_eps adam_epsilon",
    "optim.name": "optimizer",
    "optim.schedule": "lr_schedule lr_scheduler scheduler_type",
    "optim.weight_decay": "wd",
    "train.batch_size": "bs batchsize batch train_batch_size",
    "train.steps": "epochs num_epochs iters n_iters max_steps num_steps train_steps num_train_steps",
    "train.micro_batches": "accumulate grad_accum gradient_accumulation gradient_accumulation_steps microbatch",
    "train.checkpoint_every": "save_every save_interval checkpoint_interval",
    "train.log_every": "log_interval",
    "ema.decays": "ema_decay ema_rate decay",
    "process.name": "beta_schedule noise_schedule scheduler sde",
    "process.steps": "timesteps num_timesteps diffusion_steps num_train_timesteps num_diffusion_timesteps num_scales",
    "prediction.name": "objective parameterization prediction_type pred_type predict mean_type model_mean_type",
    "sampler.name": "sampling_method sampler_name",
    "sampler.steps": "num_inference_steps sampling_steps sample_steps nfe timestep_respacing",
    "sampler.num_samples": "n_samples num_images n_images",
    "sampler.labels": "classes class_labels class_label",
    "guidance.scale": "cfg_scale guidance_scale cfg guidance_weight",
    "cond.labels": "class_cond conditional class_conditional",
    "cond.dropout": "p_uncond label_dropout cond_drop_prob class_dropout_prob",
    "network.channels": "base_channels model_channels num_channels width dim nf ch",
    "network.multipliers": "dim_mults channel_mult channel_mults ch_mult channel_multipliers",
    "network.blocks": "num_res_blocks n_res_blocks num_blocks depth",
    "network.attention": "attention_resolutions attn_resolutions",
    "network.heads": "num_heads n_heads",
    "network.dtype": "precision mixed_precision fp16 bf16 use_fp16",
    "data.name": "dataset dataset_name",
    "data.path": "data_path root image_folder",
    "data.image_size": "resolution img_size size",
    "data.flip": "random_flip hflip horizontal_flip",
    "seed": "random_seed rng_seed",
}


def like(key: str) -> list[str]:
    """The keys that a mistyped key may mean: what other codes call so, those of that name in any section, or the nearest."""
    section, _, leaf = key.lower().rpartition(".")
    here = f"{OTHER_SECTIONS.get(section, section)}.{leaf}"
    named = [ours for ours, theirs in NAMES.items() if leaf in theirs.split()]
    elsewhere = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    return [here] * (here in KEYS) or named or elsewhere or nearest(key, KEYS)


def unknown_key(key: str) -> UserError:
    """The error for a key that does not exist: names the sections that have it, or the nearest key, or the section's keys."""
    key = key.strip(".")
    inside = [known for known in KEYS if known.startswith(key + ".")]
    siblings = [known for known in KEYS if "." in key and known.startswith(key.rpartition(".")[0] + ".")]
    if inside:
        hint = f"It is a section: set one of its keys, {', '.join(inside)}."
    elif like(key):
        hint = f"Did you mean {' or '.join(like(key))}?"
    elif siblings:
        section = key.rpartition(".")[0]
        hint = f"The keys of {section} are {', '.join(known.removeprefix(section + '.') for known in siblings)}."
    else:
        sections = sorted({known.partition(".")[0] for known in KEYS if "." in known})
        hint = f"The keys are {', '.join(known for known in KEYS if '.' not in known)} and those of {', '.join(sections)}."
    return UserError(f"There is no config key {key!r}. {hint}")


def suggestion(key: str, value: Any) -> str:
    """What a value that is not accepted may mean, as a sentence, or \"\"."""
    accepts = KEYS[key].accepts
    if accepts is None or KEYS[key].is_rule or not isinstance(value, str):
        return ""
    if ours := here(value, ELSEWHERE.get(key, {})):
        return f" What others call so is here {ours}."
    near = nearest(value, accepts)
    return f" Did you mean {near[0]}?" if near else ""
