"""The command line: python -m ddpm_jax.main --config=configs/mnist.py"""

import sys
import traceback

from absl import flags, logging

from ddpm_jax import platform
from ddpm_jax.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "", "A config file and, after a colon, variants of it: configs/mnist.py:ddim,smoke.")
flags.DEFINE_string("workdir", "", "The run directory (default: runs/<config>[-<variants>]).")
flags.DEFINE_enum("mode", "train", ["train", "sample"], "Train (and sample at the end), or sample from a trained run.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv: list[str]) -> None:
    """Parses the command line and does what it says."""
    from ddpm_jax import command
    from ddpm_jax.training import jobs

    flag_words, overrides, wants_help = command.split(argv[1:])
    command.parse_flags(flag_words)
    if wants_help:
        print(command.help_text(FLAGS.config, FLAGS.workdir, overrides))
        return
    config, workdir = command.resolve(FLAGS.config, FLAGS.workdir, FLAGS.mode, overrides)
    jobs.JOBS[FLAGS.mode](config, workdir)


def run() -> None:
    """Runs `main`; a user's mistake becomes one paragraph and an exit code."""
    logging.set_verbosity(logging.ERROR)  # orbax tells every step of a save at INFO, and its own settings at WARNING
    platform.prepare()
    try:
        main(sys.argv)
    except UserError as error:
        if FLAGS["debug"].value or "--debug" in sys.argv:  # the flags may be what could not be parsed
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\nInterrupted. Training continues from its last checkpoint by the same command.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
