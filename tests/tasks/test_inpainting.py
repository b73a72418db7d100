"""Inpainting by a run: what may be given, what comes back, and what is written."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import ddpm_jax
from ddpm_jax import command, images
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.data import Source
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.samplers import ddim
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import jobs, resumable, run_directory
from ddpm_jax.tasks import build, inpainting

SHAPE = (8, 8, 1)
PICTURES = np.random.default_rng(1).integers(0, 256, (3, *SHAPE), np.uint8)
MASK = np.random.default_rng(2).random((8, 8)) < 0.5


class Blurring(nn.Module):
    """A network of a few parameters, which compiles at once, and in which a pixel sees its neighbours."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + x * (1 + w[1]) + 0.3 * jnp.roll(x, 1, 1) - 0.3 * jnp.roll(x, 1, 2) + w[2] * time[:, None, None, None]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the smallest size, the files to inpaint beside it."""
    folder = tmp_path_factory.mktemp("inpainting")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setitem(NETWORKS, "blurring", Blurring)
    config = variants.apply(configs.base(), "smoke")
    config.network.name = "blurring"
    source = Source({"image": np.repeat(PICTURES, 16, 0), "label": np.zeros(48, np.int32)}, 1)
    run_directory.write(folder / "run", config, SHAPE)
    resumable.train(config, folder / "run", build(config, SHAPE), source, jax.devices()[:1])
    (folder / "pictures").mkdir()
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture[..., 0]).save(folder / "pictures" / f"{i}.png")
    Image.fromarray(PICTURES[0, :7, :, 0]).save(folder / "low.png")
    Image.fromarray(np.uint8(255 * MASK)).save(folder / "mask.png")
    Image.fromarray(np.uint8(MASK)).save(folder / "faint.png")
    (folder / "text.png").write_text("no image")
    np.savez(folder / "stored.npz", samples=PICTURES)
    np.savez(folder / "today.npz", arr_0=PICTURES)
    np.savez(folder / "other.npz", images=PICTURES)
    np.savez(folder / "small.npz", samples=PICTURES[:, :4])
    (folder / "text.npz").write_text("no archive")
    yield folder / "run"
    monkeypatch.undo()


def config_of(workdir, **changes):
    config = run_directory.read(workdir)[0]
    config.inpaint.update(images=str(workdir.parent / "pictures"), mask=str(workdir.parent / "mask.png"))
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.mark.thorough
def test_the_command_writes_before_mask_and_after(workdir, capsys):
    """Five samples of three images: the known pixels as they were, and a row of the picture per image."""
    config = config_of(workdir, sampler__num_samples=5, inpaint__resamplings=2)
    jobs.sample(config, workdir)
    assert "inpainting 3 images by repaint" in capsys.readouterr().out
    (name,) = (path.stem for path in (workdir / "samples").glob("step_00000008_ancestral5_inpaint_repaint_*_n5.json"))
    assert re.search(r"_pictures-[0-9a-f]{8}_mask-[0-9a-f]{8}_resamplings_2_seed0_n5$", name)
    samples, facts = np.load(workdir / "samples" / f"{name}.npz")["arr_0"], (workdir / "samples" / f"{name}.json").read_text()
    assert '"network_evaluations": 9' in facts and '"method": "repaint"' in facts
    np.testing.assert_array_equal(samples[:, MASK], np.resize(PICTURES, samples.shape)[:, MASK])
    assert (samples[:, ~MASK] != np.resize(PICTURES, samples.shape)[:, ~MASK]).mean() > 0.9
    assert (samples[0] != samples[3]).any()
    with Image.open(workdir / "samples" / f"{name}.png") as picture:
        grid = np.asarray(picture)[..., 0]
    scale, step = 6, 6 * 8 + 3
    tiles = [
        [grid[3 + i * step :, 3 + j * step :][: scale * 8 : scale, : scale * 8 : scale] for j in range(4)] for i in range(3)
    ]
    for i in range(3):
        before, masked, after, second = tiles[i]
        np.testing.assert_array_equal(before, PICTURES[i, ..., 0])
        np.testing.assert_array_equal(masked, np.where(MASK, before, 128))
        np.testing.assert_array_equal(after, samples[i, ..., 0])
        np.testing.assert_array_equal(second, samples[3 + i, ..., 0] if i < 2 else np.full((8, 8), 128))


@pytest.mark.thorough
def test_in_python(workdir):
    """All methods; the same as by the command; known pixels bit for bit, here and with any clipping."""
    run = ddpm_jax.load(workdir)
    for method, clip in {"replacement": "none", "dps": "keep_eps", "pigdm": "rederive", "mmps": "rederive"}.items():
        drawn = run.inpaint(PICTURES, MASK, method=method, name="ddim", steps=4, clip=clip)
        np.testing.assert_array_equal(drawn[:, MASK], np.asarray(images.to_model(PICTURES))[:, MASK])
        assert drawn.shape == (3, *SHAPE) and np.isfinite(drawn).all() and (drawn[0] != drawn[1])[~MASK].mean() > 0.5
    for mask in (MASK.astype(np.uint8), np.where(MASK, np.uint8(200), np.uint8(100))):
        np.testing.assert_array_equal(inpainting.given(PICTURES, mask, SHAPE).known[..., 0], MASK)
    programs = len(run.compiled)
    again = run.inpaint(images.to_model(PICTURES), MASK[..., None], count=4, method="mmps", name="ddim", steps=4, eta=1)
    assert len(again) == 4 and len(run.compiled) == programs + 1
    again = run.inpaint(PICTURES, ~MASK, method="mmps", name="ddim", steps=4, seed=2)
    assert len(run.compiled) == programs + 1 and (again[:, ~MASK] == images.to_model(PICTURES)[:, ~MASK]).all()


def test_pixels_are_known_from_grey_level_128_on(workdir):
    """In an array and in a file."""
    levels = np.where(MASK, np.uint8(128), np.uint8(127))
    np.testing.assert_array_equal(inpainting.given(PICTURES, levels, SHAPE).known[..., 0], MASK)
    Image.fromarray(levels).save(workdir.parent / "edge.png")
    config = config_of(workdir, inpaint__mask=str(workdir.parent / "edge.png"))
    np.testing.assert_array_equal(inpainting.read(config.inpaint, SHAPE).known[..., 0], MASK)


def test_known_pixels_end_as_they_are(tiny_config):
    """Those of image i mod their number; from the end of the grid on, not before."""
    tiny_config.inpaint.method = "replacement"
    given, denoise = inpainting.given(PICTURES, MASK, SHAPE), lambda x, t: Prediction(0.5 * x, x)  # noqa: ARG005
    of_samples = jnp.array([4, 0]), ddim(), denoise, PROCESSES["vp"](), jnp.asarray(0.1), None
    _, guided = inpainting.transformed(tiny_config, given, *of_samples)
    x, kept = jnp.ones((2, *SHAPE)), np.asarray(images.to_model(PICTURES[[1, 0]]))
    np.testing.assert_array_equal(guided(x, 0.1).x0, np.where(MASK[..., None], kept, 0.5))
    np.testing.assert_array_equal(guided(x, 0.2).x0, 0.5 * x)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": "nowhere"}, "nowhere cannot be read as an image .No such file"),
        ({"images": "text.png"}, "text.png cannot be read as an image .no PNG, JPEG, WebP, BMP or TIFF"),
        ({"images": "low.png"}, "low.png is 7 pixels high and 8 wide, and the run's images are 8 high and 8 wide"),
        ({"mask": "low.png"}, "low.png is 7 pixels high and 8 wide"),
        ({"mask": "faint.png"}, r"faint.png, of grey levels 0 to 1 of 255, is black .0. all over\. Known pixels are white"),
        ({"images": "run/checkpoints"}, "holds no images.*Pass another --config.inpaint.images"),
        ({"images": "other.npz"}, "other.npz cannot be read as images .there is no array `arr_0`"),
        ({"images": "text.npz"}, "text.npz cannot be read as images"),
        ({"images": "small.npz"}, r"small.npz holds uint8 \[3, 4, 8, 1\], and the run's images are uint8 \[N, 8, 8, 1\]"),
    ],
)
def test_files_that_do_not_fit(changes, words, workdir):
    config = config_of(workdir, **{f"inpaint__{key}": str(workdir.parent / name) for key, name in changes.items()})
    with pytest.raises(UserError, match=words):
        inpainting.read(config.inpaint, SHAPE)


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.where(MASK, 1.0, -1.0), "found float64 from -1.0 to 1.0: give mask > 0"),
        (np.where(MASK, 1.0, 0.1), "found float64 from 0.1 to 1.0"),
        (np.where(MASK, np.nan, 0.0), "found float64 from nan to nan"),
        (np.where(MASK, 255, 0), "found int64 from 0 to 255"),
        (np.where(MASK, "known", ""), "found <U5"),
        (np.ones((8, 8)), r"The mask is white \(1\) all over"),
        (np.zeros((8, 8), bool), r"The mask is black \(0\) all over"),
        (np.full((8, 8), 100, np.uint8), "all over"),
    ],
)
def test_masks_that_say_nothing(mask, words):
    """The function that the command and Python call refuses them."""
    with pytest.raises(UserError, match=words):
        inpainting.given(PICTURES, mask, SHAPE)


@pytest.mark.parametrize(
    "pictures", [np.full((2, *SHAPE), np.nan, "f"), np.zeros((2, *SHAPE), int), np.zeros((2, *SHAPE), bool)]
)
def test_images_that_are_none(pictures):
    with pytest.raises(UserError, match="The images to inpaint must be uint8, or floats from -1 to 1, found"):
        inpainting.given(pictures, MASK, SHAPE)


@pytest.mark.thorough
def test_files_that_fit(workdir):
    config = config_of(workdir)
    stored = {"stored.npz": PICTURES, "today.npz": PICTURES}
    for name, expected in {"pictures": PICTURES, "pictures/1.png": PICTURES[1:2], **stored}.items():
        config.inpaint.images = str(workdir.parent / name)
        given = inpainting.read(config.inpaint, SHAPE)
        np.testing.assert_array_equal(images.to_uint8(given.images), expected)
        np.testing.assert_array_equal(given.known[..., 0], MASK)


def test_what_does_not_go_together(workdir):
    run = ddpm_jax.load(workdir)
    with pytest.raises(UserError, match=r"of the run's shape, \[N, 8, 8, 1\], found \[3, 7, 8, 1\]"):
        run.inpaint(PICTURES[:, :7], MASK)
    with pytest.raises(UserError, match=r"The mask must be of the images' size, 8 x 8, found an array of \[8, 7\]"):
        run.inpaint(PICTURES, MASK[:, :7])
    with pytest.raises(
        UserError, match="inpaint.method=dps and config.sampler.name=annealed_langevin do not go together: .* loop"
    ):
        run.inpaint(PICTURES, MASK, method="dps", name="annealed_langevin")
    with pytest.raises(UserError, match="sampler.last=stop would leave noise on the known pixels"):
        run.inpaint(PICTURES, MASK, last="stop")
    with pytest.raises(UserError, match="inpaint.method takes one of replacement, .*, tmpd, mmps, found 'paint'"):
        run.inpaint(PICTURES, MASK, method="paint")
    with pytest.raises(UserError, match="must be uint8, or floats from -1 to 1, found int64 from 2 to 255"):
        run.inpaint(np.int64(PICTURES), MASK)
    with pytest.raises(UserError, match=r"this run has data of shape \[2\]"):
        inpainting.given(PICTURES, MASK, (2,))
    config = config_of(workdir, guidance__classifier="runs/classifier")
    with pytest.raises(ValueError, match="would change the known pixels: inpaint without it"):
        inpainting.transformed(config, *[None] * 7)


def test_a_run_directory_names_no_files_to_inpaint(workdir, tmp_path):
    """Neither one that was told to, nor a stranger's: its paths are dropped."""
    config = config_of(workdir)
    run_directory.write(tmp_path, config, SHAPE)
    assert run_directory.read(tmp_path)[0].inpaint.images == run_directory.read(tmp_path)[0].inpaint.mask == ""


@pytest.mark.parametrize(
    "words",
    [
        "--mode=sample --config.inpaint.images=a.png",
        "--mode=sample --config.inpaint.method=dps",
        "--config.inpaint.images=a.png --config.inpaint.mask=b.png",
    ],
)
def test_half_a_command(words, workdir):
    with pytest.raises(UserError, match="is for inpainting, --mode=sample --config.inpaint.images=.*: give all of these"):
        _, overrides, _ = command.split(words.split())
        command.resolve("", str(workdir), "sample" if "sample" in words else "train", overrides)
