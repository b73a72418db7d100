"""Errors of the machine are not blamed on what happened to run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from ddpm_jax import command
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.diffusion import processes
from ddpm_jax.errors import UserError, explain

ROOT = Path(__file__).parent.parent
HERE = {"cwd": ROOT, "capture_output": True, "text": True}


def raises_user_errors(handler):
    calls = [node.func for node in ast.walk(handler) if isinstance(node, ast.Call)]
    return {"UserError", "Damaged", "Unreadable", "Failure"} & {getattr(call, "id", "") for call in calls}


@pytest.mark.parametrize("path", sorted((ROOT / "ddpm_jax").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_who_catches_everything_asks_what_it_is(path):
    """An exception of any kind, or any ValueError, that becomes an error in other words."""
    for handler in ast.walk(ast.parse(path.read_text())):
        caught = getattr(handler, "type", None) if isinstance(handler, ast.ExceptHandler) else None
        if getattr(caught, "id", "") in ("Exception", "ValueError") and raises_user_errors(handler):
            assert "tell_machine(error)" in ast.unparse(handler), f"line {handler.lineno}: call errors.tell_machine first"


def test_a_config_file_is_read_where_there_is_no_device():
    """And what then lacks is said, not blamed on the file."""
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    reads = "from ddpm_jax import command; command.load('configs/digits.py:edm,smoke'); command.load('configs/cifar10.py:ve')"
    assert subprocess.run([sys.executable, "-c", reads], env=environment, **HERE).returncode == 0
    main = [sys.executable, "-m", "ddpm_jax.main", "--config=configs/digits.py:smoke", "--workdir=/nowhere/run"]
    told = subprocess.run(main, env=environment, **HERE)
    assert told.returncode == 2 and "no device to run on (AssertionError). Unset JAX_PLATFORMS, which is 'cuda'" in told.stderr
    assert "digits.py" not in told.stderr and "Traceback" not in told.stderr


def memory(*_, **__):
    raise MemoryError("no more")


def mixes(*_, **__):
    import jax

    with jax.numpy_dtype_promotion("strict"):
        return jnp.float32(1.0) * jnp.int32(1)


@pytest.mark.parametrize("fails, words", [(memory, "memory does not suffice"), (mixes, "Unset JAX_NUMPY_DTYPE_PROMOTION")])
def test_what_the_machine_refuses_is_no_clash_of_settings(fails, words, monkeypatch, tmp_path):
    config = variants.apply(configs.base(), "smoke")
    monkeypatch.setitem(processes.PROCESSES, "linear", lambda *, steps=10: fails(steps))
    with pytest.raises((UserError, MemoryError)) as caught:
        configs.validate(config)
    assert words in str(explain(caught.value))
    path = tmp_path / "x.py"
    path.write_text(f"from tests.test_errors import {fails.__name__}\ndef get_config():\n    {fails.__name__}()\n")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    with pytest.raises(UserError, match=words):
        command.load(str(path))


def test_what_a_config_file_does_itself_is_its_own(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def get_config():\n    return [0] * 10**16\n")
    with pytest.raises(UserError, match=r"x.py, line 2: MemoryError"):
        command.load(str(path))
