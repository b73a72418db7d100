"""The command line: python -m ddpm_jax.main --config=configs/mnist.py"""

import sys
import traceback
import warnings

from absl import flags, logging

from ddpm_jax import platform, signals
from ddpm_jax.errors import explain
from ddpm_jax.terminal import say

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "", "A config file and, after a colon, variants of it: configs/mnist.py:ddim,smoke.")
flags.DEFINE_string("workdir", "", "The run directory (default: runs/<config>[-<variants>]).")
flags.DEFINE_enum(
    "mode", "train", ["train", "sample", "eval"], "Train (and sample at the end); or sample from a trained run, or evaluate it."
)
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv: list[str]) -> None:
    """Parses the command line and does what it says."""
    from ddpm_jax import command
    from ddpm_jax.config import variants
    from ddpm_jax.evaluation import jobs as evaluation
    from ddpm_jax.runs import jobs as training

    flag_words, overrides, wants_help = command.split(argv[1:])
    command.parse_flags(flag_words)
    if wants_help:
        say(*command.help_text(FLAGS.config, FLAGS.workdir, overrides).splitlines())
        return
    config, workdir = command.resolve(FLAGS.config, FLAGS.workdir, FLAGS.mode, overrides)
    made_by = {"variants": variants.split(FLAGS.config.partition(":")[2])} if FLAGS.mode == "train" else {}
    (training.JOBS | evaluation.JOBS)[FLAGS.mode](config, workdir, **made_by)


def run() -> None:
    """Runs `main`; a user's mistake becomes one paragraph and an exit code."""
    # orbax tells every step of a save at INFO, its own settings at WARNING, and at ERROR the traceback of what it raises
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _show_unraisable
    with signals.listening(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            platform.prepare()
            platform.check_cache()
            main(sys.argv)
        except signals.Stopped as stopped:
            signals.leave(stopped.number)
        except Exception as error:
            known = explain(error)
            is_bug = known is None
            if is_bug or FLAGS["debug"].value or "--debug" in sys.argv:  # the flags may be what could not be parsed
                say(*traceback.format_exc().splitlines(), file=sys.stderr)
            if not is_bug:
                say(f"error: {known}", file=sys.stderr)
            sys.exit(1 if is_bug else known.exit_code)


def _show_unraisable(args):
    if str(args.exc_value) != "Event loop is closed":  # what tensorstore says beside the error of a save that failed
        sys.__unraisablehook__(args)


def _show_warning(message, *_, **__):
    say("warning: " + " ".join(str(message).split()), file=sys.stderr)


if __name__ == "__main__":
    run()
