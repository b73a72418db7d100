import json
import re
from pathlib import Path

import pytest

from ddpm_jax import command
from ddpm_jax import config as configs
from ddpm_jax import main as main_module
from ddpm_jax.config import variants
from ddpm_jax.config.key import Key
from ddpm_jax.diffusion.samplers import SAMPLERS
from ddpm_jax.errors import UserError
from ddpm_jax.runs import jobs, run_directory

HEADER = 'from ddpm_jax import config as configs, variants\ndef get_config(names=""):\n    config = configs.base()\n'
FILES = {
    "good": HEADER + "    return variants.apply(config, names)\n",
    "syntax": HEADER + "    return (config\n",
    "no_function": "x = 1\n",
    "no_argument": HEADER.replace('names=""', "") + "    return config\n",
    "returns_none": HEADER,
    "raises": HEADER + "    config.optimm.b1 = 0.5\n    return config\n",
    "imports": "import no_such_module\n",
    "int_of_float": HEADER + "    config.train.steps = 1e3 + 0.5\n    return config\n",
    "mistyped": HEADER + "    config.optim.lerning_rate = 1.0\n    return config\n",
    "wrong_choice": HEADER + '    config.sampler.name = "ddmi"\n    return config\n',
    "out_of_range": HEADER + "    config.train.batch_size = 0\n    return config\n",
    "wrong_element": HEADER + '    config.network.multipliers = (1, "2")\n    return config\n',
    "none": HEADER + "    config.network.multipliers = None\n    return config\n",
    "nan": HEADER + '    config.optim.learning_rate = float("nan")\n    return config\n',
    "lacks": HEADER + "    del config.ema\n    return config\n",
    "adds": HEADER + "    config.mine = dict(a=1)\n    return config\n",
    "helper": "FACTOR = 3\ndef edit(config):\n    config.train.log_every = FACTOR\n"
    + HEADER
    + "    edit(config)\n    config.network.multipliers = [1, 2]\n    config.optim.learning_rate = 1\n    return config\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with configs, a file where a folder belongs, an empty folder, and a run of `good` with no checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for name, text in FILES.items():
        Path(f"configs/{name}.py").write_text(text)
    Path("file").write_text("")
    Path("empty").mkdir()
    run_directory.write(Path("run"), variants.apply(configs.base(), "smoke"), (8, 8, 1))
    return tmp_path


def read(line: str):
    """(mode, config, run directory) of a command line, as `main` reads it."""
    flag_words, overrides, _ = command.split(line.split(" ") if line else [])
    main_module.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "debug"):
        main_module.FLAGS[name].unparse()
    command.parse_flags(flag_words)
    flags = main_module.FLAGS
    return flags.mode, *command.resolve(flags.config, flags.workdir, flags.mode, overrides)


GOOD = "--config=configs/good.py"

MISTAKES = {
    # what to do at all
    "": ["--mode=train of what", "--config=<file>", "configs/good.py", "--workdir"],
    "--mode=sample": ["--mode=sample of what", "--workdir"],
    "--mode=eval": ["--mode=eval of what", "--workdir"],
    # flags
    "--mode=foo " + GOOD: ["--mode=foo", "train|sample"],
    "--mode " + GOOD: ["--mode=--config=configs/good.py", "train|sample"],
    "--config": ["Missing value for flag --config."],
    "--wrkdir=x " + GOOD: ["no flag --wrkdir.", "Did you mean --workdir?", "--mode", "--config.<key>"],
    "--zzz " + GOOD: ["no flag --zzz. The flags are --config, --workdir, --mode, --debug"],
    "--learning_rate=1 " + GOOD: ["no flag --learning_rate.", "Did you mean --config.optim.learning_rate?"],
    "--noconfig.optim.b1 " + GOOD: ["no flag --noconfig.optim.b1.", "Did you mean --config.optim.b1?"],
    "--debug=maybe " + GOOD: ["--debug=maybe", "Non-boolean"],
    GOOD + " smoke": ["The word 'smoke' belongs to no flag"],
    GOOD + " config.optim.b1=0.5": ["The word 'config.optim.b1=0.5' belongs to no flag"],
    GOOD + " --config.network.multipliers 1 2": ["The word '2' belongs to no flag"],
    # config files
    "--config=configs/god.py": ["no config file configs/god.py;", "the configs here are", "configs/good.py"],
    "--config=configs": ["configs is a folder, not a config file", "configs/good.py"],
    "--config=configs/syntax.py": ["configs/syntax.py, line 4: SyntaxError", "--debug"],
    "--config=configs/no_function.py": ["configs/no_function.py must have a function get_config(names", "but there is none"],
    "--config=configs/no_argument.py:smoke": ["configs/no_argument.py: TypeError: get_config() takes 0 positional"],
    "--config=configs/returns_none.py": ["get_config", "must have a function", "it returns NoneType"],
    "--config=configs/raises.py": ["configs/raises.py, line 4: AttributeError: 'optimm'", '"optim" instead'],
    "--config=configs/imports.py": ["configs/imports.py, line 1: ModuleNotFoundError", "no_such_module"],
    "--config=configs/int_of_float.py": ["configs/int_of_float.py, line 4: TypeError", "train.steps takes an int", "1000.5"],
    # values that a config file sets
    "--config=configs/mistyped.py": ["no config key 'optim.lerning_rate'. Did you mean optim.learning_rate?"],
    "--config=configs/wrong_choice.py": ["config.sampler.name takes one of ancestral,", "Did you mean ddim?"],
    "--config=configs/out_of_range.py": ["config.train.batch_size takes an int greater than 0", "found 0."],
    "--config=configs/wrong_element.py": ["config.network.multipliers takes a tuple of ints", "found (1, '2')."],
    "--config=configs/none.py": ["config.network.multipliers takes a tuple of ints", "found None."],
    "--config=configs/nan.py": ["config.optim.learning_rate takes a float greater than 0", "found nan."],
    "--config=configs/lacks.py": ["The config lacks ema.decays", "ddpm_jax.config.base()"],
    "--config=configs/adds.py": ["no config key 'mine.a'. The keys are task, seed, addresses and those of cond, data, ema,"],
    # variants
    GOOD + ":smok": ["no variant 'smok'; the variants are ddpm, ddim, vp,", "Did you mean smoke?"],
    GOOD + ":ddmi": ["no variant 'ddmi'", "Did you mean ddim?"],
    GOOD + ":DDIM": ["no variant 'DDIM'", "Did you mean ddim?"],
    GOOD + ":zzz": ["no variant 'zzz'; the variants are ddpm, ddim, vp,"],
    GOOD + ":ddim,ddpm": ["The variants ddim and ddpm both choose the sampler"],
    GOOD + ":ddim,smoke,ddim": ["The variant ddim is given twice"],
    # keys
    GOOD + " --config.optim.learning_rat=1": ["no config key 'optim.learning_rat'. Did you mean optim.learning_rate?"],
    GOOD + " --config.optm.learning_rate=1": ["no config key 'optm.learning_rate'. Did you mean optim.learning_rate?"],
    GOOD + " --config.Optim.B1=1": ["no config key 'Optim.B1'. Did you mean optim.b1?"],
    GOOD + " --config.steps=1": ["Did you mean process.steps or train.steps or sampler.steps or eval.steps?"],
    GOOD + " --config.data.batch_size=1": ["Did you mean train.batch_size or sampler.batch_size or eval.batch_size?"],
    GOOD + " --config.optimizer.lr=1": ["no config key 'optimizer.lr'. Did you mean optim.learning_rate?"],
    GOOD + " --config.train.lr=1": ["no config key 'train.lr'. Did you mean optim.learning_rate?"],
    GOOD + " --config.lr=1": ["no config key 'lr'. Did you mean optim.learning_rate?"],
    GOOD + " --lr=1": ["no flag --lr. Did you mean --config.optim.learning_rate?"],
    GOOD + " --config.optimizer.b1=1": ["no config key 'optimizer.b1'. Did you mean optim.b1?"],
    GOOD + " --config.model.name=unet": ["no config key 'model.name'. Did you mean network.name?"],
    GOOD + " --config.optim.zzz=1": ["The keys of optim are name, schedule, learning_rate, "],
    GOOD + " --config.optim=1": ["'optim'. It is a section: set one of its keys, optim.name, optim.schedule,"],
    GOOD + " --config.optim.=1": ["'optim'. It is a section: set one of its keys, optim.name"],
    GOOD + " --config.zzz=1": ["no config key 'zzz'. The keys are task, seed, addresses and those of cond, data, ema, eval,"],
    GOOD + " --config.=1": ["no config key ''. The keys are task, seed, addresses and those of cond, data,"],
    # values
    GOOD + " --config.optim.b1": ["config.optim.b1 takes a float", "found no value: write --config.optim.b1=<value>."],
    GOOD + " --config.data.split --debug": ["config.data.split takes a string, found no value"],
    GOOD + " --config.optim.learning_rate=": ["takes a float greater than 0 and below 2^31, found ''."],
    GOOD + " --config.optim.learning_rate=fast": ["takes a float greater than 0 and below 2^31, found 'fast'."],
    GOOD + " --config.optim.learning_rate -1": ["takes a float greater than 0 and below 2^31, found '-1'."],
    GOOD + " --config.optim.learning_rate=nan": ["takes a float greater than 0 and below 2^31, found 'nan'."],
    GOOD + " --config.optim.learning_rate=inf": ["takes a float greater than 0 and below 2^31, found 'inf'."],
    GOOD + " --config.optim.clip_norm=inf": ["takes a float at least 0 and below 2^31, found 'inf'."],
    GOOD + " --config.train.steps=1e-3": ["config.train.steps takes an int greater than 0 and below 2^31, found '1e-3'."],
    GOOD + " --config.train.steps=1e99": ["config.train.steps takes an int greater than 0 and below 2^31, found '1e99'."],
    GOOD + " --config.train.steps=((": ["config.train.steps takes an int greater than 0 and below 2^31, found '(('."],
    GOOD + " --config.data.raw_dir=auto": ["config.data.raw_dir takes a string that is not auto (./auto is a folder)"],
    GOOD + " --config.train.steps=True": ["takes an int greater than 0 and below 2^31, found 'True'."],
    GOOD + " --config.train.steps=99999999999": ["takes an int greater than 0 and below 2^31, found '99999999999'."],
    GOOD + " --config.seed=-1": ["config.seed takes an int from 0 to 4294967295, found '-1'."],
    GOOD + " --config.seed=4294967296": ["config.seed takes an int from 0 to 4294967295, found '4294967296'."],
    GOOD + " --config.network.channels=7": ["takes an int that is even and at least 4, at most 8192, found '7'."],
    GOOD + " --config.sampler.name=ddmi": ["takes one of ancestral, ddim,", "found 'ddmi'. Did you mean ddim?"],
    GOOD + " --config.data.name=MNIST": ["takes one of digits, mnist, fashion_mnist,", "found 'MNIST'. Did you mean mnist?"],
    GOOD + " --config.network.attention=4,a": ["takes a tuple of ints, as 1,2 or (1,2), each greater than 0", "found '4,a'."],
    GOOD + " --config.network.attention=4,2.5": ["takes a tuple of ints", "found '4,2.5'."],
    GOOD + " --config.network.attention=4,-1": ["each greater than 0", "found '4,-1'."],
    GOOD + " --config.network.attention=True": ["takes a tuple of ints", "found 'True'."],
    GOOD + " --config.process.steps=1e9": ["takes auto or an int greater than 0 and at most 100000, found '1e9'."],
    GOOD + f" --config.ema.decays={'0.5,' * 17}": ["config.ema.decays takes at most 16 decays, found 17."],
    GOOD + " --config.network.multipliers=()": ["config.network.multipliers needs at least one level"],
    # values that do not go together
    GOOD + " --config.sampler.eta=0.5": ["config.sampler.eta does not apply to sampler.name=ancestral"],
    GOOD + " --config.sampler.t_min=0.1": ["config.sampler.t_min does nothing on a table of steps", "leave it out."],
    GOOD + " --config.times.t_min=0.1": ["config.times.t_min does nothing on a table of steps", "leave it out."],
    GOOD + ":edm --config.sampler.s_min=0.1": ["sampler.s_min does nothing without churn, config.sampler.s_churn: leave it"],
    GOOD + ":ddim --config.sampler.eta=1.5": ["takes auto or a float from 0 to 1, found '1.5'."],
    GOOD + ":ddim --config.sampler.variance=fixed_small": ["config.sampler.variance does not apply to sampler.name=ddim"],
    GOOD + " --config.data.raw_dir=raw": ["config.data.raw_dir does not apply to data.name=digits"],
    GOOD + " --config.sampler.steps=1001": ["sampler.grid=uniform", "cannot place 1001 different steps on a table of 1000"],
    GOOD + " --config.process.steps=100": ["sampler.steps=1000", "process.steps=100", "cannot place 1000"],
    GOOD + " --config.process.beta_end=1.5": ["betas must lie in (0, 1)", "found betas["],
    GOOD + ":edm --config.sampler.grid=quadratic": ["process.name=edm", "the quadratic grid is made of a table's integers"],
    GOOD + " --config.sampler.grid=sections --config.sampler.sections=10,20": ["has 30 times: set config.sampler.steps=30"],
    GOOD + " --config.sampler.grid=sections --config.sampler.sections=x": ["sections must be counts", "found 'x'"],
    GOOD + " --config.times.name=log_normal": ["log_normal times are continuous"],
    GOOD + " --config.sampler.rho=5.": ["config.sampler.rho does not apply to sampler.grid=uniform: leave it out"],
    GOOD + ":vp,edm": ["The variants vp and edm both choose the process"],
    GOOD + " --config.process.sigma_max=5.": ["config.process.sigma_max does not apply to process.name=linear"],
    GOOD + " --config.sampler.steps=1 --config.sampler.last=mean": ["last='mean' needs a transition", "at least two times"],
    GOOD + " --config.process.beta_start=0.5": ["where alpha = 0", "use one of x0, v, velocity, edm"],
    GOOD + " --config.process.beta_end=1": ["where alpha = 0", "use one of x0, v, velocity, edm"],
    # run directories
    GOOD + " --workdir=file": ["file cannot be a run directory", "is a file. Give another --workdir."],
    GOOD + " --workdir=file/deeper": ["file/deeper cannot be a run directory", "is a file"],
    "--workdir=file": ["file cannot be a run directory", "is a file"],
    "--workdir=nowhere": ["no run in nowhere", "--config=configs/digits.py --workdir=nowhere"],
    "--workdir=empty": ["no run in empty"],
    GOOD + " --workdir=run": ["run holds a run with another config", "network.channels: 8 -> 128", "another --workdir"],
    "--workdir=run --config.optim.b1=0.5": ["run holds a run with another config: optim.b1: 0.9 -> 0.5 (there -> here)"],
    "--mode=sample " + GOOD: ["no run in runs/good"],
    "--mode=sample --workdir=empty": ["no run in empty"],
    "--workdir=run --config.sampler.checkpoint=4": ["sampler.checkpoint=4 is for --mode=sample and eval", "Leave it out"],
    GOOD + " --config.sampler.checkpoint=-1": ["config.sampler.checkpoint takes an int at least 0"],
    "--mode=sample --workdir=run --config.train.steps=9": ["only config.sampler, ", "found config.train.steps"],
    "--mode=sample --workdir=run --config.seed=9": ["only config.sampler, ", "found config.seed"],
    "--mode=eval " + GOOD: ["no run in runs/good"],
    "--mode=eval --workdir=run --config.sampler.steps=9": ["only config.eval, config.sampler.ema,", "sampler.steps"],
    "--mode=eval --workdir=run --config.eval.grid=leading": ["config.eval.grid takes one of auto, log_snr, uniform, karras,"],
    "--mode=eval --workdir=run --config.eval.loss_every=2": ["config.eval.loss_every is of losses measured while training"],
    "--mode=eval --workdir=run --config.eval.steps=1": ["config.eval.steps takes auto or an int at least 2 and at most"],
    "--mode=eval --workdir=run --config.eval.solver=dopri5 --config.eval.steps=9": ["eval.steps does not apply to eval.solver"],
    "--mode=sample --workdir=run --config.sampler.stps=9": ["Did you mean sampler.steps?"],
    "--mode=sample " + GOOD + " --workdir=run": ["run holds a run with another config"],
    GOOD + ":vp --config.network.time_embedding=fourier": ["vp shows the network a time of up to 999, of", "take ve or"],
    GOOD + " --config.network.time_embedding=fourier": ["process.name=linear shows the network a time of up to 999,"],
    GOOD + " --config.sampler.name=adaptive_ode": ["linear teaches the network its 1000 steps alone: take dpmpp_2m"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_paragraph(line, here):  # noqa: ARG001 - `here` is the current folder
    """Says what was wrong, what was found and what is accepted, and leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        read(line)
    text = str(caught.value)
    for words in MISTAKES[line]:
        assert words in text, text
    assert "\n\n" not in text and caught.value.exit_code == 2 and text.rstrip()[-1] in ".?"
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize(
    "spec, changes",
    [("good:vp", {"network.time_embedding": "fourier"}), ("good", {"sampler.name": "adaptive_ode"})],
)
def test_a_run_of_before_keeps_what_a_new_one_is_refused(spec, changes, here):  # noqa: ARG001 - the current folder
    path, _, names = spec.partition(":")
    config = command.load(f"configs/{path}.py:{names}" if names else f"configs/{path}.py")
    for key, value in changes.items():
        command.apply_override(config, key, value)
    run_directory.write(Path("old"), config, (8, 8, 1))
    for mode in ("train", "sample"):
        found, _ = command.resolve("", "old", mode, [])
        assert all(configs.value_of(key, found) == value for key, value in changes.items())


def test_what_a_new_run_may_begin_with(here):  # noqa: ARG001
    fourier = [("network.time_embedding", "fourier")]
    for variant in ("ve", "edm"):
        command.resolve(f"configs/good.py:{variant}", "new", "train", fourier)
    command.resolve("configs/good.py:vp", "new", "train", [("sampler.name", "adaptive_ode"), ("sampler.steps", "2")])


GRAMMAR = {
    GOOD + " --config.optim.learning_rate=3e-4": ("optim.learning_rate", 3e-4),
    "--config.optim.learning_rate=3e-4 " + GOOD: ("optim.learning_rate", 3e-4),
    "--config.optim.learning_rate 3e-4 --config configs/good.py": ("optim.learning_rate", 3e-4),
    GOOD + " -config.optim.learning_rate=3e-4": ("optim.learning_rate", 3e-4),
    GOOD + " --config.optim.learning_rate=1": ("optim.learning_rate", 1.0),
    GOOD + " --config.optim.b1=0.5 --config.optim.b1=0.6": ("optim.b1", 0.6),
    GOOD + " --config.train.steps=1_000": ("train.steps", 1000),
    GOOD + " --config.train.steps=1e4": ("train.steps", 10000),
    GOOD + " --config.ema.decays=0": ("ema.decays", (0.0,)),
    GOOD + " --config.ema.decays=0,0.5": ("ema.decays", (0.0, 0.5)),
    GOOD + " --config.network.multipliers=1.0,2": ("network.multipliers", (1, 2)),
    GOOD + " --config.sampler.steps=2 --config.sampler.grid=explicit --config.sampler.times=1,0.5": ("sampler.times", (1, 0.5)),
    GOOD + ":ddim --config.sampler.eta=auto": ("sampler.eta", "auto"),
    GOOD + ":ddim --config.sampler.eta=1": ("sampler.eta", 1.0),
    GOOD + ":edm --config.sampler.s_min=0.1 --config.sampler.s_churn=2": ("sampler.s_min", 0.1),
    GOOD + ":vp --config.times.t_min=0.1": ("times.t_min", 0.1),
    GOOD + " --config.process.rescale": ("process.rescale", True),
    GOOD + " --config.data.split=a=b": ("data.split", "a=b"),
    GOOD + " --config.data.split=": ("data.split", ""),
    GOOD + " --config.data.split=None": ("data.split", "None"),
    GOOD + " --config.network.multipliers=1,2": ("network.multipliers", (1, 2)),
    GOOD + " --config.network.multipliers=(1,2)": ("network.multipliers", (1, 2)),
    GOOD + " --config.network.multipliers=[1,2]": ("network.multipliers", (1, 2)),
    GOOD + " --config.network.multipliers 4": ("network.multipliers", (4,)),
    GOOD + " --config.network.multipliers=(4,)": ("network.multipliers", (4,)),
    GOOD + " --config.network.multipliers=4,": ("network.multipliers", (4,)),
    GOOD + " --config.network.attention=()": ("network.attention", ()),
    GOOD + " --config.network.attention=": ("network.attention", ()),
    GOOD + ":cond --config.sampler.labels=3,5": ("sampler.labels", (3, 5)),
    GOOD + ":cond --config.sampler.labels=(3,)": ("sampler.labels", (3,)),
    GOOD + ":cond --config.sampler.labels=": ("sampler.labels", ()),
    GOOD + ":cond --config.sampler.labels=cat": ("sampler.labels", ("cat",)),
    GOOD + ":cond --config.sampler.labels=3,T-shirt/top,2": ("sampler.labels", (3, "T-shirt/top", 2)),
    GOOD + " --config.data.name=folder --config.data.image_size=64": ("data.image_size", (64,)),
    GOOD + " --config.data.name=folder --config.data.image_size=64,128": ("data.image_size", (64, 128)),
    GOOD + ":ddim --config.sampler.steps=7": ("sampler.steps", 7),
    GOOD + " --config.sampler.eta=0.5 --config.sampler.name=ddim": ("sampler.eta", 0.5),
    GOOD + " --config.process.beta_start=0.01 --config.process.beta_end=0.03": ("process.beta_start", 0.01),
    GOOD + " --config.process.steps=9 --config.sampler.steps=9": ("process.steps", 9),
    "--config=configs/helper.py": ("train.log_every", 3),
    "--config=configs/no_argument.py": ("seed", 0),
    "--workdir=run --config.train.steps=9": ("train.steps", 9),
    "--mode=sample --workdir=run --config.sampler.num_samples=9": ("sampler.num_samples", 9),
    "--mode=eval --workdir=run --config.eval.bpd": ("eval.bpd", True),
    "--mode=eval --workdir=run --config.sampler.ema=0": ("sampler.ema", 0),
}


@pytest.mark.parametrize("line", GRAMMAR)
def test_what_is_accepted(line, here):  # noqa: ARG001 - `here` is the current folder
    key, value = GRAMMAR[line]
    found = configs.flatten(read(line)[1])[key]
    assert found == value and type(found) is type(value)


def test_sampling_takes_every_sampler_key(here):  # noqa: ARG001
    given = dict(name="ddim", steps=50, eta=0.5, num_samples=3, seed=7, grid="quadratic")
    overrides = [f"--config.sampler.{key}={value}" for key, value in given.items()]
    mode, config, workdir = read(" ".join(["--mode=sample --workdir=run", *overrides]))
    assert mode == "sample" and workdir == Path("run")
    assert {key: config.sampler[key] for key in given} == given
    saved = configs.flatten(run_directory.read(Path("run"))[0])
    differing = [key for key, value in configs.flatten(config).items() if value != saved[key]]
    assert sorted(differing) == sorted(f"sampler.{key}" for key in given)


def test_a_config_file_may_set_lists_and_ints_for_floats(here):  # noqa: ARG001
    config = read("--config=configs/helper.py")[1]
    assert config.network.multipliers == (1, 2) and isinstance(config.network.multipliers, tuple)
    assert isinstance(config.optim.learning_rate, float)


def test_a_run_is_continued_with_its_own_config(here):  # noqa: ARG001
    """--workdir alone; and with --config, what may change on resume comes from there and the rest must agree."""
    saved = configs.flatten(run_directory.read(Path("run"))[0])
    mode, config, workdir = read("--workdir=run")
    assert (mode, workdir, configs.flatten(config)) == ("train", Path("run"), saved)
    assert read(GOOD + ":smoke --workdir=run --config.train.steps=9")[1].train.steps == 9
    with pytest.raises(UserError, match=r"ema.decays: \(0.9999,\) -> \(0.5,\)"):
        read(GOOD + ":smoke --workdir=run --config.ema.decays=0.5")


def test_a_run_keeps_its_random_numbers(here):  # noqa: ARG001
    """The command that began an older run continues it; a new one has the addresses of today, or those that it asks for."""
    command_line = GOOD + ":smoke --workdir=run"
    assert read(command_line)[1].addresses == configs.base().addresses == "by_purpose"
    content = json.loads(Path("run/config.json").read_text())
    del content["config"]["addresses"]
    Path("run/config.json").write_text(json.dumps(content | {"format": 4}))
    for words in (command_line, "--workdir=run", command_line + " --mode=sample", command_line + " --config.addresses=shared"):
        assert read(words)[1].addresses == "shared"
    with pytest.raises(UserError, match="addresses: 'shared' -> 'by_purpose' .*leave these as they are there"):
        read(command_line + " --config.addresses=by_purpose --config.train.allow_changes=true")
    assert read(GOOD + ":smoke --workdir=another --config.addresses=shared")[1].addresses == "shared"


def test_default_run_directory():
    assert command.default_name("configs/mnist.py") == command.default_name("configs/mnist.py:") == "mnist"
    assert command.default_name("/elsewhere/mnist.py:ddim,smoke") == "mnist-ddim-smoke"
    assert command.default_name("mnist.py: ddim, ,smoke") == "mnist-ddim-smoke"


def test_paths_may_be_absolute_or_the_home_folders(here, monkeypatch):
    """From another folder, too; the default run directory is in the current one."""
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.chdir("empty")
    assert read(f"--config={here}/configs/good.py:smoke")[2] == Path("runs/good-smoke")
    assert read("--config=~/configs/good.py --workdir=~/new")[2] == here / "new"
    assert read("--config=../configs/good.py --workdir=../new")[2] == Path("../new")
    assert configs.flatten(read(f"--workdir={here}/run")[1]) == configs.flatten(read("--workdir=~/run")[1])
    with pytest.raises(UserError, match="there is no config in the folder configs here"):
        read("")


def test_bools(here, monkeypatch):  # noqa: ARG001
    """--config.key, --config.key=false and --noconfig.key; a word after --config.key is not its value."""
    monkeypatch.setitem(configs.KEYS, "train.flag", Key(False, "a bool"))
    for words, value in {"--config.train.flag": True, "--config.train.flag=true": True, "--noconfig.train.flag": False}.items():
        assert read(f"{GOOD} {words}")[1].train.flag is value
    assert read(f"{GOOD} --config.train.flag --config.train.flag=false")[1].train.flag is False
    with pytest.raises(UserError, match="The word 'false' belongs to no flag"):
        read(f"{GOOD} --config.train.flag false")
    with pytest.raises(UserError, match="config.train.flag takes true or false, found '2'"):
        read(f"{GOOD} --config.train.flag=2")


def test_sampling_before_the_first_checkpoint(here):  # noqa: ARG001
    _, config, workdir = read("--mode=sample --workdir=run")
    with pytest.raises(UserError, match="run has no checkpoint yet: the first comes at step 4"):
        jobs.sample(config, workdir)


def test_help_lists_configs_and_variants(here):  # noqa: ARG001
    text = command.help_text("", "", [])
    for word in (*command.FLAG_NAMES, "train|sample", *(f"configs/{name}.py" for name in FILES), *variants.VARIANTS):
        assert word in text
    assert "--config.optim" not in text


@pytest.mark.parametrize("words", ["--config=configs/good.py:smoke", "--workdir=run"])
def test_help_with_a_config_or_a_run_lists_every_key_its_value_and_choices(words, here):  # noqa: ARG001
    config, workdir = re.match(r"(?:--config=(\S+))?(?:--workdir=(\S+))?", words).groups(default="")
    text = command.help_text(config, workdir, [("optim.b1", "0.25")])
    assert re.findall(r"^  --config\.([\w.]+)=", text, re.MULTILINE) == list(configs.KEYS)
    headed = re.findall(r"\n\n(top level|\w+): (.*)\n  --config\.(\w+)", text)
    assert [(name, meaning) for name, meaning, _ in headed] == [(key or "top level", s) for key, s in configs.SECTIONS.items()]
    assert all(name in (first, "top level") for name, _, first in headed)
    for line in ("train.steps=8", "network.multipliers=1,2", "network.attention=", "optim.b1=0.25", "sampler.name=ancestral"):
        assert f"--config.{line}\n" in text
    for entry in configs.KEYS.values():
        assert f"{entry.help}; {entry.kind()}" in text
    assert "share of fresh noise; auto or a float from 0 to 1; taken by sampler.name=ddim (auto: 0.0)," in text
    assert "linear (auto: 1000), " in text and "ncsn (auto: 232)\n" in text
    assert "between levels instead of convolutions; true or false; taken by network.name=unet\n" in text
    assert f"one of {', '.join(SAMPLERS)}" in text


def test_help_is_found_anywhere_and_takes_no_word():
    for words in (["--help"], ["-h"], ["--config=a.py", "--help"], ["--config.optim.b1", "--help", "--config=a.py"]):
        assert command.split(words)[2]
    assert command.split(["--config.guidance.inpaint.mask=a.png"])[1] == [("inpaint.mask", "a.png")]
    assert command.split(["--config.optim.b1", "0.5", "--config=a.py"]) == (["--config=a.py"], [("optim.b1", "0.5")], False)
