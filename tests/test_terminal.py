"""What comes from outside neither steers the terminal nor breaks a line or a file's name, whoever prints it."""

import ast
import io
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.data import folder
from ddpm_jax.errors import UserError
from ddpm_jax.runs import sampling
from ddpm_jax.terminal import LIMIT, LINE_LIMIT, say, shown

PACKAGE = Path(ddpm_jax.__file__).parent
HOSTILE = "a\x1b]0;title\x07\x9b31m\r\n\u202eb\udcff\u2028.png"


def test_one_module_prints():
    """So that what holds there holds everywhere."""
    for path in PACKAGE.rglob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        writes = calls & {"print", "traceback.print_exc", "sys.stdout.write", "sys.stderr.write", "warnings.warn"}
        assert path.name == "terminal.py" or not writes, f"{path} calls {writes}: call ddpm_jax.terminal.say"


def test_shown():
    assert shown("an image of the Föhn, 1 µm/名前.png") == "an image of the Föhn, 1 µm/名前.png"
    assert shown(HOSTILE) == r"a\x1b]0;title\x07\x9b31m\r\n\u202eb" + "\N{REPLACEMENT CHARACTER}" + r"\u2028.png"
    assert len(shown("x" * 10**6)) < LIMIT + 10 and shown(Path("a")) == "a"


def test_any_stream_takes_it():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("größer als 名", "\x1b[2J", file=stream)
    assert stream.buffer.getvalue() == rb"gr\xf6\xdfer als \u540d" + b"\n" + rb"\x1b[2J" + b"\n"


def test_an_error_is_one_harmless_line():
    error = UserError(f"{HOSTILE} is\n wrong, " + "x" * 10**6)
    assert str(error).startswith(r"a\x1b]0;title") and str(error).isprintable() and len(str(error)) < LINE_LIMIT + 100


def test_names_of_images(tmp_path, capsys):
    """Skipped ones, passed over ones, and those that an error names."""
    Image.new("L", (9, 9)).save(tmp_path / "good.png")
    for name in ("\x1b[31mbad.png", "\x1b[31mother.\x1b[31m", "\x1b[31mclass/bad.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder.load(split="train", path=str(tmp_path), image_size=8)
    (tmp_path / "good.png").unlink()
    with pytest.raises(UserError) as caught:
        folder.load(split="train", path=str(tmp_path), image_size=8)
    out = capsys.readouterr().out
    assert r"\x1b[31mbad.png" in out and "\x1b" not in out + str(caught.value)


def test_names_of_samples():
    """A run directory's config names them."""
    for section, values in {
        "sections": [HOSTILE, "10\n20", "../../x", "x" * 1000, "10,20,30"], "eta": [1e20], "times": [(1.0, 1e-30)],
    }.items():  # fmt: skip
        for value in values:
            config = configs.base()
            config.sampler.update(name="ddim", grid="sections" if section == "sections" else "explicit")
            config.sampler[section] = value
            config.inpaint.update(images=f"{HOSTILE}/..", mask=HOSTILE)
            name = sampling.sample_name(config, 8)
            assert re.fullmatch(r"step_[A-Za-z0-9._-]{1,240}", name), name


def test_a_bug_whose_message_is_hostile(monkeypatch, capsys):
    """Its traceback is shown, in harmless lines."""
    from ddpm_jax import main

    def broken(_):
        raise ZeroDivisionError(HOSTILE)

    monkeypatch.setattr(main, "main", broken)
    monkeypatch.setattr(sys, "argv", ["main"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as stop:
        main.run()
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.startswith("Traceback") and "ZeroDivisionError: a" in err
    assert all(line.isprintable() for line in err.splitlines())
