"""From the words of the command line to a config and a run directory."""

import runpy
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from ddpm_jax import config as configs
from ddpm_jax.errors import UserError
from ddpm_jax.training import run_directory
from ddpm_jax.variants import VARIANTS

FLAG_NAMES = ("--config", "--workdir", "--mode", "--debug")


def split(words: list[str]) -> tuple[list[str], list[list[str]], bool]:
    """(words of flags, overrides, whether help is wanted), in any order.

    An override is --config.key=value, --config.key value, or --[no]config.key for a bool, as a list of one or two words.
    """
    others, overrides, wants_help = [], [], False
    words = list(words)
    while words:
        word = words.pop(0)
        name = word.lstrip("-").partition("=")[0]
        if word in ("--help", "-h", "-help"):
            wants_help = True
        elif word.startswith("-") and name.startswith(("config.", "noconfig.")):
            value = [words.pop(0)] if "=" not in word and words and not words[0].startswith("--") else []
            overrides.append([word, *value])
        else:
            others.append(word)
    return others, overrides, wants_help


def resolve(config_spec: str, workdir: str, mode: str, overrides: list[list[str]]) -> tuple[ConfigDict, Path]:
    """The config and the run directory that the command means. Raises UserError for whatever is wrong with it."""
    if not config_spec and not workdir:
        raise UserError(
            f"Nothing to do: give --config=<file> for a new run ({_configs_here()}), or --workdir=<directory> of an existing one."
        )
    directory = Path(workdir) if workdir else Path("runs") / default_name(config_spec)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--workdir={directory} is a file; it takes a directory.")
    config = load(config_spec) if config_spec else run_directory.read(directory)[0]
    changed = [apply_override(config, words) for words in overrides]
    configs.validate(config)
    for key in changed:
        if not configs.applies(key, config):
            section = key.partition(".")[0]
            raise UserError(f"config.{key} does not apply to {section}.name={config[section].name}: leave it out.")
        if mode == "sample" and not key.startswith("sampler."):
            raise UserError(f"--mode=sample takes the run's config: only config.sampler keys may be given, found config.{key}.")
    if config_spec and run_directory.exists(directory) or changed and not config_spec:
        run_directory.check_agreement(directory, config)
    if mode == "sample":
        run_directory.read(directory)
    return config, directory


def default_name(config_spec: str) -> str:
    """configs/mnist.py:ddim,smoke -> mnist-ddim-smoke."""
    path, _, names = config_spec.partition(":")
    return "-".join([Path(path).stem, *(name for name in names.split(",") if name)])


def load(config_spec: str) -> ConfigDict:
    """get_config(variants) of a config file. Raises UserError where there is none or it fails."""
    path, _, names = config_spec.partition(":")
    if not Path(path).is_file():
        raise UserError(f"There is no config file {path}. {_configs_here().capitalize()}.")
    try:
        config = runpy.run_path(path)["get_config"](names)
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else "?")
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}. --debug shows the traceback.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {path} must return a ConfigDict (see ddpm_jax.config.base), found {type(config).__name__}."
        )
    return config


def apply_override(config: ConfigDict, words: list[str]) -> str:
    """Sets one key from the command line, parsed as its default's type. Returns the key."""
    key = words[0].lstrip("-").partition("=")[0].partition(".")[2]
    if key not in configs.KEYS:
        raise configs.unknown_key(key)
    values = flags.FlagValues()
    argv = ["", *words]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
        configs.validate(config)
    except (flags.Error, TypeError, ValueError) as error:
        found = words[0].partition("=")[2] or " ".join(words[1:])
        raise UserError(f"config.{key} takes {configs.kind(key)}, found {found!r}.") from error
    if rest:
        raise UserError(f"config.{key} takes {configs.kind(key)}, found {' '.join(words)!r}.")
    return key


def help_text(config_spec: str, workdir: str) -> str:
    """What --help prints: the flags, configs and variants; with a config or a run, every key, its value and its choices."""
    lines = ["python -m ddpm_jax.main --config=<file>[:<variant>,...] [--config.<key>=<value> ...] [flags]", ""]
    for name in FLAG_NAMES:
        flag = flags.FLAGS[name.lstrip("-")]
        lines.append(f"  {name:<10} {flag.help}")
    lines += ["", f"configs: {_configs_here()}", "", "variants:"]
    lines += [f"  {name:<10} {variant.edit.__doc__.strip()} [{variant.group}]" for name, variant in VARIANTS.items()]
    if not config_spec and not workdir:
        return "\n".join([*lines, "", "Give --config=<file> or --workdir=<run> too, to see every key with its value."])
    config = load(config_spec) if config_spec else run_directory.read(Path(workdir))[0]
    lines += ["", f"keys of {config_spec or workdir}:"]
    for key, value in configs.flatten(config).items():
        lines.append(f"  --config.{key}={value!r}".replace("'", ""))
        lines.append(f"        {configs.KEYS[key].help}; {configs.kind(key)}")
    return "\n".join(lines)


def _configs_here() -> str:
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return "the configs here are " + ", ".join(found) if found else "there is no folder configs here"
