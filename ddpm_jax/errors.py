"""The exceptions that `main` prints without a traceback."""

import errno
import os
import traceback

from ddpm_jax.terminal import LINE_LIMIT, shown


class UserError(Exception):
    """A user's mistake: what was wrong, what was found, and what to do, in one paragraph. Exit code 2.

    It can be printed whatever it quotes: it is one line, and nothing in it steers a terminal.
    """

    exit_code = 2

    def __init__(self, paragraph: str):
        super().__init__(shown(" ".join(paragraph.split()), LINE_LIMIT))


class Diverged(UserError):
    """Training left the finite numbers. Exit code 3."""

    exit_code = 3


def explain(error: Exception) -> UserError | None:
    """The UserError for what files, memory or the machine refuse. None for what must be a bug, whose traceback is wanted."""
    if isinstance(error, OSError):
        return UserError(
            f"The system refuses: {first_line(error)}. {remedy(error)}, then start the same command again; --debug shows where "
            "it was."
        )
    return error if isinstance(error, UserError) else _of_machine(error)


def tell_machine(error: Exception) -> None:
    """Raises the UserError for what memory or the machine refuse, before an error is taken for that of a file or a config.

    Whoever catches any exception, or ValueError, calls this first.
    """
    if known := _of_machine(error):
        raise known from error


def _of_machine(error):
    if type(error).__name__ == "TypePromotionError":
        return UserError(
            f"JAX refuses to mix types ({first_line(error)}), which this code does. Unset JAX_NUMPY_DTYPE_PROMOTION, which is "
            f"{os.environ.get('JAX_NUMPY_DTYPE_PROMOTION', '')!r}: it wants standard, the default."
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
        return UserError(
            f"The memory does not suffice ({first_line(error)}). For training lower config.train.batch_size or the size of "
            "the network (config.network.channels, multipliers, blocks, attention), in another --workdir; for sampling lower "
            "config.sampler.batch_size, for evaluating config.eval.batch_size; where the data take it up, "
            "config.data.memory_limit_mb; or end other programs there."
        )
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.endswith("xla_bridge.py"):  # an AssertionError too, where jax lacks the plugin of a GPU
        return UserError(
            f"JAX finds no device to run on ({first_line(error)}). Unset JAX_PLATFORMS, which is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}, or install the jax of that device as the README says."
        )
    return None


def remedy(error: Exception) -> str:
    """What to do about what could not be written. By its words too, since some libraries raise their own kinds of errors."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    is_full = getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)
    return "Make room" if is_full else "Mend that"


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, of a long one the beginning and the end."""
    text = (str(error).splitlines() or [""])[0].rstrip(". ")
    text = f"{text[:100]} ... {text[-100:]}" if len(text) > 220 else text
    return ": ".join(filter(None, (type(error).__name__, text)))
