"""What the command line's mode `eval` does."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.runs import run, run_directory


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Evaluates a run on the split config.eval.split, by what config.eval switches on.

    Of which checkpoint says config.sampler.checkpoint.
    """
    if not config.eval.bpd:
        raise UserError("--mode=eval of what? Switch an evaluation on: --config.eval.bpd=true, bits per dimension.")
    restored = run.restore(workdir, config)
    source = construct(SOURCES, dict(config.data) | {"split": config.eval.split})
    run_directory.check_data(workdir, source, whole=False)
    bits_per_dimension.evaluate(restored, source)


JOBS: dict[str, Callable[[ConfigDict, Path], None]] = {"eval": evaluate}
