"""Keys that do nothing in some configs."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ddpm_jax.config.keys import KEYS
from ddpm_jax.config.values import acting, chooser, chosen
from ddpm_jax.construct import takes
from ddpm_jax.errors import UserError


def why_not(key: str, config: ConfigDict) -> str:
    """Why the key does nothing in this config, or ""."""
    for idle, is_so, reason in IDLE:
        if idle == key and is_so(config):
            return reason
    by = chooser(key)
    if not by or key == "sampler.steps":  # a grid that has a length of its own is held to it
        return ""
    if not takes(chosen(by, config), key.rpartition(".")[2]):
        return f"does not apply to {by}={acting(by, config)}"
    return why_not(by, config)


def _on_a_table(config):
    return takes(chosen("process.name", config), "steps")


def _without_guidance(config):
    return config.guidance.scale == 1 and not config.guidance.classifier


def _classifies(config):
    return config.task == "classifier"

AT_SCALE_1 = (_without_guidance, "does nothing at config.guidance.scale=1, the conditional model alone")

NO_CHURN = (lambda config: acting("sampler.s_churn", config) == 0, "does nothing without churn, config.sampler.s_churn")

FIRST_STEP = (_on_a_table, "does nothing on a table of steps, which has its own times")

NO_LABELS = (lambda config: not config.cond.labels, "does nothing without labels, the variant cond")

# Of these a classifier has none, but for the average that it guides with and the film of the noising process.
OF_SAMPLES = tuple(
    key
    for key in KEYS
    if key.startswith(("loss.", "guidance.", "sampler."))
    and key not in ("sampler.ema", "sampler.ema_width", "sampler.frames")
)

# Keys that do nothing in some configs although the choice takes them: (key, whether it is one of these configs, why).
IDLE: list[tuple[str, Callable[[ConfigDict], bool], str]] = [
    ("times.t_min", *FIRST_STEP),
    ("sampler.t_min", *FIRST_STEP),
    ("eval.bound_steps", *FIRST_STEP),
    ("sampler.s_min", *NO_CHURN),
    ("sampler.s_max", *NO_CHURN),
    ("sampler.s_noise", *NO_CHURN),
    (
        "sampler.published",
        lambda config: config.sampler.name == "deis" and acting("sampler.order", config) < 3,
        "does nothing in deis of order 1 and 2",
    ),
    (
        "sampler.published",
        lambda config: config.sampler.name in ("euler", "heun") and NO_CHURN[0](config),
        NO_CHURN[1],
    ),
    ("process.zero_terminal_snr", lambda config: config.process.name == "jsd", "does nothing to jsd, which ends at zero SNR"),
    ("guidance.interval_low", *AT_SCALE_1),
    ("guidance.interval_high", *AT_SCALE_1),
    ("guidance.rescale", *AT_SCALE_1),
    ("guidance.weak", *AT_SCALE_1),
    ("cond.dropout", *NO_LABELS),
    ("ema.snapshot_every", lambda config: not config.ema.widths, "needs ema.widths"),
    ("network.fourier_scale", lambda config: config.network.time_embedding != "fourier", "needs time_embedding=fourier"),
    ("network.resample_projection", lambda config: not config.network.residual_resample, "needs residual_resample=true"),
    ("network.heads", lambda config: config.network.head_channels != 0, "does nothing where network.head_channels is not 0"),
    ("network.single_up_attention", lambda config: not config.network.attention, "needs network.attention"),
    ("network.single_up_attention", _classifies, "does nothing in a classifier, which has no way up"),
    ("train.max_skips", lambda config: config.train.on_nonfinite != "skip", "needs train.on_nonfinite=skip"),
    ("eval.probes", lambda config: config.eval.probe == "exact", "does nothing with eval.probe=exact"),
    *((key, _classifies, "does nothing in a classifier, config.task") for key in OF_SAMPLES),
]


def applies(key: str, config: ConfigDict) -> bool:
    """Whether the key does something in this config."""
    return not why_not(key, config)


def check_applies(key: str, config: ConfigDict) -> None:
    """Raises UserError for a key that does nothing in this config."""
    if reason := why_not(key, config):
        raise UserError(f"config.{key} {reason}: leave it out.")
