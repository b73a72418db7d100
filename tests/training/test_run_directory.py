import json

import pytest

from ddpm_jax import config as configs
from ddpm_jax.errors import UserError
from ddpm_jax.training import run_directory


def test_round_trip(tmp_path):
    config = configs.base()
    config.network.multipliers = (1, 3)
    config.optim.learning_rate = 1.1e-4
    run_directory.write(tmp_path / "run", config, (28, 28, 1))
    read, image_shape = run_directory.read(tmp_path / "run")
    assert configs.flatten(read) == configs.flatten(config) and image_shape == (28, 28, 1)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "checkpoints", "samples"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["versions"]["jax"]


def test_an_older_config_gets_todays_defaults(tmp_path):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    content = json.loads((tmp_path / "config.json").read_text())
    del content["config"]["train.keep_every"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_directory.read(tmp_path)[0].train.keep_every == configs.KEYS["train.keep_every"].default


@pytest.mark.parametrize(
    "text, words",
    [(None, "There is no run in"), ("{", "cannot be read"), ("{}", "cannot be read"), ("[]", "cannot be read")],
)
def test_what_is_no_run(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        run_directory.read(tmp_path)


def test_another_format_is_refused(tmp_path):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    text = (tmp_path / "config.json").read_text().replace('"format": 2', '"format": 99')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="format 99.*formats up to 2"):
        run_directory.read(tmp_path)


def test_agreement(tmp_path):
    config = configs.base()
    run_directory.write(tmp_path, config, (8, 8, 1))
    config.train.steps += 1
    config.sampler.steps = 10
    run_directory.check_agreement(tmp_path, config)
    config.optim.learning_rate = 0.5
    config.seed = 3
    with pytest.raises(UserError, match=r"seed: 0 -> 3; optim.learning_rate: 0.0002 -> 0.5.*--workdir"):
        run_directory.check_agreement(tmp_path, config)
