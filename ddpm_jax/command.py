"""From the words of the command line to a config and a run directory."""

import ast
import os
import runpy
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.construct import AUTO
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.runs import run_directory
from ddpm_jax.spelling import nearest

FLAG_NAMES = ("--config", "--workdir", "--mode", "--debug")
EXIT_CODES = "exit codes: 0; 2 what needs your hand; 3 training diverged; 143 SIGTERM, 130 Ctrl-C (training saves a checkpoint)"
HELP = ("--help", "-help", "-h")

# What the command may say besides the run's own config, in the modes that need a run.
TAKES = {
    "sample": ("sampler.", "guidance.", "inpaint."),
    "eval": (
        "eval.", "sampler.ema", "sampler.ema_width", "sampler.checkpoint",
        "data.data_dir", "data.raw_dir", "data.path", "data.memory_limit_mb",
    ),
}  # fmt: skip

Override = tuple[str, str | None]  # a key and its value as typed; None: no value was given


def split(words: list[str]) -> tuple[list[str], list[Override], bool]:
    """(words for absl's flags, overrides, whether help is wanted), in any order.

    An override is --config.key=value or --config.key value; for a bool also --config.key and --noconfig.key. The section
    inpaint may be called guidance.inpaint.
    """
    others, overrides, wants_help = [], [], False
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        prefix, _, key = name.partition(".")
        key = key.removeprefix("guidance.") if key.startswith("guidance.inpaint.") else key
        is_bool = key in configs.KEYS and configs.KEYS[key].type is bool
        if word in HELP:
            wants_help = True
        elif word.startswith("-") and name.startswith("config."):
            if not equals and is_bool:
                value = "true"
            elif not equals:
                value = words.pop(0) if words and not words[0].startswith("--") else None
            overrides.append((key, value))
        elif word.startswith("-") and prefix == "noconfig" and is_bool and not equals:
            overrides.append((key, "false"))
        else:
            others.append(word)
    return others, overrides, wants_help


def parse_flags(words: list[str]) -> None:
    """Gives absl's flags their values. Raises UserError for an unknown flag, a wrong value, or a word that belongs to none."""
    accepted = f"The flags are {', '.join(FLAG_NAMES)}, --config.<key> and --help."
    try:
        rest = flags.FLAGS(["", *words])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.partition("=")[0]
        near = nearest(f"--{name}", FLAG_NAMES) or [f"--config.{key}" for key in configs.like(name)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"There is no flag --{name}.{hint} {accepted}") from error
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}. {accepted}") from error
    if rest:
        raise UserError(f"The word {rest[0]!r} belongs to no flag. {accepted}")


def resolve(config_spec: str, workdir: str, mode: str, overrides: list[Override]) -> tuple[ConfigDict, Path]:
    """The config and the run directory that the command means. Raises UserError for whatever is wrong with it."""
    if not config_spec and not workdir:
        new = "" if mode in TAKES else f"--config=<file> for a new run ({_configs_here()}), or "
        raise UserError(f"--mode={mode} of what? Give {new}--workdir=<directory> of an existing run.")
    directory = Path(workdir).expanduser() if workdir else Path("runs") / default_name(config_spec)
    nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise UserError(f"{directory} cannot be a run directory: {nearest} is a file. Give another --workdir.")
    config = load(config_spec) if config_spec else run_directory.read(directory)[0]
    configs.check_complete(config)
    if run_directory.exists(directory) and configs.is_default("addresses", config):  # so that it continues older runs, too
        config.addresses = run_directory.read(directory)[0].addresses
    for override in overrides:
        apply_override(config, *override)
    configs.validate(config)
    for key, _ in overrides:
        configs.check_applies(key, config)
        if mode in TAKES and not key.startswith(TAKES[mode]):
            taken = ", ".join(f"config.{prefix.rstrip('.')}" for prefix in TAKES[mode])
            raise UserError(f"--mode={mode} takes the run's config: only {taken} keys may be given, found config.{key}.")
        if key.startswith("inpaint.") and (mode != "sample" or not (config.inpaint.images and config.inpaint.mask)):
            raise UserError(
                f"config.{key} is for inpainting, --mode=sample --config.inpaint.images=<a PNG, folder or .npz> "
                "--config.inpaint.mask=<a PNG>: give all of these, or leave it out."
            )
        if key.startswith("eval.loss_") and mode in TAKES:
            raise UserError(f"config.{key} is of losses measured while training: leave it out.")
    if config.sampler.checkpoint and mode not in TAKES:
        raise UserError(
            f"config.sampler.checkpoint={config.sampler.checkpoint} is for --mode=sample and eval: training continues from the "
            "newest checkpoint. Leave it out."
        )
    if config.sampler.ema_width and mode not in TAKES:
        raise UserError(
            f"config.sampler.ema_width={config.sampler.ema_width} is for --mode=sample and eval: training keeps those of "
            "config.ema.widths. Leave it out."
        )
    if mode in TAKES or run_directory.exists(directory):
        run_directory.check_agreement(directory, config)
    else:
        configs.check_new(config)
    return config, directory


def default_name(config_spec: str) -> str:
    """configs/mnist.py:ddim,smoke -> mnist-ddim-smoke."""
    path, _, names = config_spec.partition(":")
    return "-".join([Path(path).stem, *variants.split(names)])


def load(config_spec: str) -> ConfigDict:
    """get_config() of a config file, given the variants if there are any. Raises UserError where it is missing or fails."""
    path, _, names = config_spec.partition(":")
    path = str(Path(path).expanduser())
    if not Path(path).is_file():
        problem = f"{path} is a folder, not a config file" if Path(path).is_dir() else f"There is no config file {path}"
        raise UserError(f"{problem}; {_configs_here()}.")
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config(*([names] if names else [])) if callable(get_config) else None
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or frames[-1].filename != path:  # raised elsewhere: it need not be the config's
            tell_machine(error)
        frames = [frame for frame in frames if frame.filename == path]
        line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
        where = f"{path}, line {line}" if line else path
        raise UserError(f"{where}: {type(error).__name__}: {_message(error)}. --debug shows the traceback.") from error
    if not isinstance(config, ConfigDict):
        found = f"it returns {type(config).__name__}" if callable(get_config) else "there is none"
        raise UserError(
            f'{path} must have a function get_config(names: str = "") that returns a ConfigDict, made from '
            f"ddpm_jax.config.base(), but {found}."
        )
    return config


def apply_override(config: ConfigDict, key: str, text: str | None) -> None:
    """Sets one key to a value as typed, parsed as its default's type. Raises UserError where key or value is wrong."""
    if key not in configs.KEYS:
        raise configs.unknown_key(key)
    configs.check_complete(config)
    if text is None:
        raise UserError(f"config.{key} takes {configs.KEYS[key].kind()}, found no value: write --config.{key}=<value>.")
    try:
        value = configs.cast(key, _parsed(text, configs.KEYS[key]))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last two: Python's parser
        raise UserError(f"config.{key} takes {configs.KEYS[key].kind()}, found {text!r}.") from error
    configs.check_value(key, value, found=text)
    section, _, leaf = key.rpartition(".")
    (config[section] if section else config)[leaf] = value


def _parsed(text, key):
    """What the text says of a key: a number, a word, or a tuple with or without brackets."""
    if key.type is str or text == key.default == AUTO:
        return text
    if key.type is bool:
        return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(text.lower(), text)
    if key.words:
        parts = (part.strip(" '\"") for part in text.strip("()[]").split(","))
        return tuple(int(part) if part.lstrip("-").isdecimal() else part for part in parts if part)
    if key.type is tuple:
        value = ast.literal_eval(text or "()")
        return value if isinstance(value, tuple | list) else (value,)
    return float(text) if key.type is float else ast.literal_eval(text)


def help_text(config_spec: str, workdir: str, overrides: list[Override]) -> str:
    """What --help prints: the flags, configs and variants; with a config or a run, every key, its value and its choices."""
    lines = ["python -m ddpm_jax.main --config=<file>[:<variant>,...] [--config.<key>=<value> ...] [flags]", ""]
    for name in FLAG_NAMES:
        flag = flags.FLAGS[name.lstrip("-")]
        lines.append(f"  {name:<10} {flag.help}")
    lines += ["", EXIT_CODES, "", _configs_here(), "", "variants (of one [group] at most one):"]
    lines += [f"  {name:<10} {entry.edit.__doc__.strip()} [{entry.group}]" for name, entry in variants.VARIANTS.items()]
    if not config_spec and not workdir:
        return "\n".join([*lines, "", "Give --config=<file> or --workdir=<run> too, to see every key with its value."])
    config = load(config_spec) if config_spec else run_directory.read(Path(workdir).expanduser())[0]
    for override in overrides:
        apply_override(config, *override)
    configs.validate(config)
    lines += ["", f"keys of {config_spec or workdir}:"]
    values = configs.flatten(config)
    section = None
    for key, entry in configs.KEYS.items():
        if section != (section := key.rpartition(".")[0]):
            lines += ["", f"{section or 'top level'}: {configs.SECTIONS[section]}"]
        typed = ",".join(map(str, values[key])) if isinstance(values[key], tuple) else values[key]
        lines += [f"  --config.{key}={typed}", f"        {entry.help}; {entry.kind()}{_taken_by(key)}"]
    return "\n".join(lines)


def _taken_by(key):
    """Of a key that some choices take, which; and for AUTO what stands for it."""
    takers, auto = configs.takers(key), configs.KEYS[key].default == AUTO
    names = [f"{name} (auto: {own})" if auto and own is not None else name for name, own in takers.items()]
    return f"; taken by {configs.chooser(key)}={', '.join(names)}" if names else ""


def _configs_here() -> str:
    found = sorted(str(path) for path in Path("configs").glob("*.py"))
    return "the configs here are " + ", ".join(found) if found else "there is no config in the folder configs here"


def _message(error: BaseException) -> str:
    """What an exception says; a KeyError, and what ml_collections makes of it, would show it quoted."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error).rstrip(".")
