import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import SOURCES, Source, Streamed, folder, identity
from ddpm_jax.errors import UserError

STREAM = {"memory_limit_mb": 0}


def load(path, image_size=8, **options):
    return folder.load(**({"split": "train", "path": str(path), "image_size": image_size} | options))


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)


def only(path, image_size=8, **options):
    """The one image in the folder."""
    images = load(path, image_size, **options).arrays["image"]
    assert len(images) == 1 and images.dtype == np.uint8
    return images[0]


def error(path, **options):
    with pytest.raises(UserError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path):
    """(root, {name: pixels}): colour images of 8 x 8 in three sub-folders, one of them nested."""
    images = {name: noise(i, 8, 8, 3) for i, name in enumerate(["cat/b.png", "cat/a.png", "dog/deep/c.png", "z/z.png"])}
    for name, pixels in images.items():
        save(tmp_path / name, pixels)
    return tmp_path, images


# Which files


def test_sorted_paths_and_sub_folders_as_labels(tree, capsys):
    root, images = tree
    source = load(root)
    assert isinstance(source, Source)
    np.testing.assert_array_equal(source.arrays["image"], [images[name] for name in sorted(images)])
    assert source.arrays["label"].tolist() == [0, 0, 1, 2]
    assert source.class_names == ("cat", "dog", "z")
    assert (source.arrays["label"].dtype, source.num_classes, source.image_shape) == (np.int32, 3, (8, 8, 3))
    assert capsys.readouterr().out == f"reading 4 images from {root} in 3 classes, the sub-folders\n"
    assert SOURCES["folder"] is folder.load


def test_without_sub_folders_every_label_is_0(tree):
    source = load(tree[0] / "cat")
    assert (source.arrays["label"].tolist(), source.num_classes) == ([0, 0], 1)
    assert load(tree[0] / "dog").arrays["label"].tolist() == [0]


def test_classes_are_in_natural_order(tmp_path):
    names = ["0", "1", "2", "10", "11", "a", "a2", "a2b1", "a2b10", "a10", "a010x"]
    for name in names[::-1]:
        save(tmp_path / name / "x.png", noise(0, 8, 8, 3))
    source = load(tmp_path)
    assert source.class_names == tuple(names)
    in_plain_order = [names[label] for label in source.arrays["label"]]  # as the files are
    assert in_plain_order == sorted(names)


def test_images_beside_sub_folders_are_refused(tree):
    root, _ = tree
    for i in range(7):
        save(root / f"stray{i}.png", noise(0, 8, 8, 3))
    told = error(root)
    assert "images (7: stray0.png, stray1.png" in told and "stray4.png, ...)" in told and "stray5" not in told
    assert "(cat, dog, z)" in told and "into a sub-folder of their own" in told
    shutil.rmtree(root / "z")
    assert "(cat, dog)" in error(root, **STREAM)
    for name in ("cat", "dog"):
        shutil.rmtree(root / name)
    assert (load(root).num_classes, load(root).class_names) == (1, ())


def test_the_identity_is_of_names_and_sizes(tree, tmp_path_factory):
    root, images = tree
    first = load(root).identity
    assert set(first["files"]) == {"cat", "dog", "z"} and first["files"]["cat"].startswith("2 files, ")
    moved = tmp_path_factory.mktemp("moved") / "x"
    shutil.copytree(root, moved)
    assert load(moved).identity == first == load(moved, **STREAM).identity
    save(moved / "dog/deep/c.png", noise(77, 9, 9, 3))
    assert identity.differences(first, load(moved).identity) == [
        f"files dog: {first['files']['dog']!r} -> {load(moved).identity['files']['dog']!r}"
    ]
    (moved / "cat").rename(moved / "eel")
    told = identity.differences(first, load(moved).identity)
    assert "classes 0: 'cat' -> 'dog'" in told and "classes 1: 'dog' -> 'eel'" in told


def test_the_order_does_not_depend_on_the_file_system(tree, monkeypatch):
    expected = load(tree[0])

    def walk(*args, **options):
        for top, folders, files in sorted(os_walk(*args, **options), reverse=True):
            yield top, folders[::-1], files[::-1]

    os_walk = os.walk
    monkeypatch.setattr(os, "walk", walk)
    np.testing.assert_array_equal(load(tree[0]).arrays["image"], expected.arrays["image"])


def test_hidden_files_other_files_and_linked_folders_do_not_count(tree, tmp_path_factory):
    root, images = tree
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "private.png", noise(9, 8, 8, 3))
    (root / "link").symlink_to(elsewhere)
    (root / "cat" / "loop").symlink_to(root)
    save(root / ".hidden" / "a.png", noise(9, 8, 8, 3))
    save(root / ".a.png", noise(9, 8, 8, 3))
    (root / "notes.txt").write_text("")
    assert load(root).num_examples == len(images)
    # The folder itself may be a link: the user named it.
    (elsewhere / "to").symlink_to(root)
    assert load(elsewhere / "to").num_examples == len(images)


def test_endings_in_capitals_and_all_formats(tmp_path):
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    formats = {"p": "PNG", "j": "JPEG", "w": "WEBP", "b": "BMP", "t": "TIFF"}
    for name in ("a.PNG", "b.jpg", "c.JPEG", "d.webp", "e.WebP", "f.bmp", "g.BMP", "h.tif", "i.TIFF"):
        save(tmp_path / name, flat, format=formats[name[2].lower()])
    images = load(tmp_path).arrays["image"]
    assert images.shape == (9, 8, 8, 3) and np.abs(images.astype(int) - flat).max() <= 3


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {}, {"big_tiff": True}], ids=str)
def test_tiffs(tmp_path, options):
    pixels = np.full((8, 8), 200, np.uint8)
    save(tmp_path / "a.tif", pixels, **options)
    assert np.abs(only(tmp_path).astype(int) - 200).max() <= 1
    if not options:
        save(tmp_path / "a.tif", pixels.astype(np.uint16) * 257)
        np.testing.assert_array_equal(only(tmp_path)[..., 0], pixels)


def test_pixels_of_32_bits_say_nothing_of_black_and_white(tmp_path, capsys):
    save(tmp_path / "a.png", noise(0, 8, 8))
    for name, kind in (("f.tif", np.float32), ("i.tiff", np.int32)):
        save(tmp_path / name, noise(0, 8, 8).astype(kind))
    assert load(tmp_path).num_examples == 1
    assert "skipped 2 of 3 files" in (out := capsys.readouterr().out) and "f.tif (its pixels have 32 bits" in out


def test_files_that_are_passed_over_are_counted(tmp_path, capsys):
    flat = np.full((8, 8, 3), 9, np.uint8)
    for i in range(5):
        save(tmp_path / f"{i}.bmp", flat)
        save(tmp_path / f"{i}.gif", flat)
    for name in ("a.txt", "b.TXT", "none", ".hidden.txt", ".hidden/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert load(tmp_path).num_examples == 5
    told = f"passed over 8 files in {tmp_path} that are not called .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff: "
    assert capsys.readouterr().out.startswith(told + "5 .gif, 2 .txt, 1 without ending\n")


# The pixels


@pytest.mark.parametrize(("height", "width"), [(8, 13), (8, 12), (11, 8), (8, 8)])
def test_the_centre_is_cut_out_exactly(tmp_path, height, width):
    pixels = noise(0, height, width, 3)
    save(tmp_path / "a.png", pixels)
    top, left = (height - 8) // 2, (width - 8) // 2
    np.testing.assert_array_equal(only(tmp_path), pixels[top : top + 8, left : left + 8])


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (8, 16, (8, 16), (0, 8, 0, 16)),
        (8, 20, (8, 16), (0, 8, 2, 18)),
        (12, 16, (8, 16), (2, 10, 0, 16)),
        (16, 16, (16, 8), (0, 16, 4, 12)),
        (9, 7, (7, 7), (1, 8, 0, 7)),
    ],
)
def test_of_images_that_are_not_square_the_centre_is_cut_out_exactly(tmp_path, height, width, size, box):
    pixels = noise(0, height, width, 3)
    save(tmp_path / "a.png", pixels)
    top, bottom, left, right = box
    np.testing.assert_array_equal(only(tmp_path, size), pixels[top:bottom, left:right])


def test_images_that_are_not_square_are_resized_in_shape(tmp_path):
    """A JPEG is decoded smaller, and upright, with its halves where they were; one number is height and width."""
    pixels = np.zeros((400, 1000, 3), np.uint8)
    pixels[:, 500:] = 255
    save(tmp_path / "a.jpg", pixels)
    for size in ((8, 16), (16, 8), (12,), 12):
        image = only(tmp_path, size)
        height, width = size if np.ndim(size) and len(size) == 2 else (12, 12)
        assert image.shape == (height, width, 3)
        assert image[:, : width // 2 - 2].max() < 20 and image[:, width // 2 + 2 :].min() > 235
    for wrong in (0, (8, 0), (), (8, 8, 8)):
        assert "data.image_size is one number, or height and width" in error(tmp_path, image_size=wrong)


def test_resizing_averages_what_it_drops(tmp_path):
    # Stripes as fine as pixels turn into their mean; without antialiasing they would stay black and white.
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "a.png", stripes)
    small = only(tmp_path)[..., 0].astype(int)
    assert small.shape == (8, 8) and np.abs(small - 127.5).max() < 5


def test_a_ramp_keeps_its_values_and_its_direction(tmp_path):
    row, column = np.mgrid[:64, :64]
    save(tmp_path / "a.png", np.stack([4 * column, 4 * row, 0 * row], -1).astype(np.uint8))
    small = only(tmp_path).astype(float)
    centres = 4 * (8 * np.arange(8) + 3.5)
    inner = slice(1, -1)  # at the border the filter sees one side only
    np.testing.assert_allclose(small[inner, inner, 0], np.broadcast_to(centres[inner], (6, 6)), atol=1)
    np.testing.assert_allclose(small[inner, inner, 1], np.broadcast_to(centres[inner, None], (6, 6)), atol=1)


def test_small_images_are_enlarged(tmp_path):
    save(tmp_path / "a.png", np.full((3, 2, 3), 77, np.uint8))
    np.testing.assert_array_equal(only(tmp_path), np.full((8, 8, 3), 77))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_exif_orientation_is_honoured(tmp_path, orientation, ending):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8], upright[8:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
    # EXIF's table: which side of the picture the stored file's first row and first column are.
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}, "png": {}}[ending]
    save(tmp_path / f"a.{ending}", np.ascontiguousarray(turned), exif=exif, **options)
    assert np.abs(only(tmp_path, 16).astype(int) - upright).max() < 30


def test_large_jpegs_are_the_same_but_for_their_scaled_decoding(tmp_path):
    row, column = np.mgrid[:600, :801] / 50
    waves = np.stack([np.sin(row), np.cos(column), np.sin(row + column)], -1)
    save(tmp_path / "a.jpg", np.round(127.5 + 100 * waves).astype(np.uint8), quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = image.crop((100, 0, 700, 600)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(only(tmp_path, 32).astype(int) - np.asarray(whole)).max() < 12


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (10, 20, 30, 255)
    pixels[:, 4:6] = (10, 20, 30, 0)
    pixels[:, 6:] = (0, 0, 0, 128)
    save(tmp_path / "a.png", pixels)
    found = only(tmp_path)
    np.testing.assert_array_equal(found[:, :4], np.broadcast_to((10, 20, 30), (8, 4, 3)))
    np.testing.assert_array_equal(found[:, 4:6], 255)
    assert np.abs(found[:, 6:].astype(int) - 127).max() <= 1


def test_transparent_grey_and_transparent_colours_of_a_palette(tmp_path):
    save(tmp_path / "grey" / "a.png", Image.merge("LA", [Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 0)]))
    np.testing.assert_array_equal(only(tmp_path / "grey"), np.full((8, 8, 1), 255))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    save(tmp_path / "palette" / "a.png", palette, transparency=0)
    found = only(tmp_path / "palette")
    assert found[0, 0].tolist() == [255, 255, 255] and found[5, 5].tolist() == [40, 50, 60]


def test_grey_of_1_8_and_16_bits(tmp_path):
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    save(tmp_path / "a.png", ramp)
    save(tmp_path / "b.png", ramp.astype(np.uint16) * 257 + 100)
    save(tmp_path / "c.png", Image.fromarray(ramp > 100))
    images = load(tmp_path).arrays["image"]
    np.testing.assert_array_equal(images[0, ..., 0], ramp)
    np.testing.assert_array_equal(images[1, ..., 0], ramp)
    np.testing.assert_array_equal(images[2, ..., 0], np.where(ramp > 100, 255, 0))


def test_a_cmyk_jpeg_and_the_first_image_of_an_animation(tmp_path):
    save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:], lossless=True)
    images = load(tmp_path).arrays["image"].astype(int)
    assert np.abs(images - [255, 0, 0]).max() <= 3


def test_channels(tmp_path):
    colour = np.full((8, 8, 3), (100, 200, 50), np.uint8)
    for i in range(3):
        save(tmp_path / f"grey{i}.png", np.full((8, 8), 7, np.uint8))
    save(tmp_path / "colour.png", colour)
    text = error(tmp_path)
    for part in ("3 grey images (as grey0.png)", "1 in colour (as colour.png)", "config.data.channels=rgb or grey"):
        assert part in text
    images = load(tmp_path, channels="rgb").arrays["image"]
    np.testing.assert_array_equal(images, [colour, *[np.full((8, 8, 3), 7)] * 3])
    images = load(tmp_path, channels="grey").arrays["image"]
    luma = round(0.299 * 100 + 0.587 * 200 + 0.114 * 50)
    np.testing.assert_array_equal(images, [np.full((8, 8, 1), luma), *[np.full((8, 8, 1), 7)] * 3])


# Streaming


def test_streamed_equals_in_memory(tree):
    root, _ = tree
    save(root / "z/big.jpg", noise(5, 90, 70, 3))
    held, streamed = load(root), load(root, **STREAM)
    assert isinstance(streamed, Streamed)
    for name in ("num_examples", "image_shape", "num_classes", "identity", "class_names"):
        assert getattr(held, name) == getattr(streamed, name)
    for indices in ([0], [4, 1, 1, 3], range(5)):
        expected, found = held.gather(np.array(indices)), streamed.gather(np.array(indices))
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype


def test_the_limit_is_of_decoded_bytes(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", np.zeros((8, 8), np.uint8))
    # 3 images of 592 x 592 are 1.003 MiB, of 591 x 591 0.999 MiB.
    assert isinstance(load(tmp_path, 592, memory_limit_mb=1), Streamed)
    assert isinstance(load(tmp_path, 591, memory_limit_mb=1), Source)


def test_an_image_that_is_lost_later_is_replaced_by_the_next_one(tree, capsys):
    root, images = tree
    streamed = load(root, **STREAM)
    expected = streamed.gather(np.arange(4))
    whole = (root / "z/z.png").read_bytes()
    (root / "z/z.png").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    found = streamed.gather(np.arange(4))
    told = "z/z.png cannot be decoded (image file is truncated): the next image is read in its place\n"
    assert capsys.readouterr().out == told
    np.testing.assert_array_equal(found["image"][:3], expected["image"][:3])
    np.testing.assert_array_equal(found["image"][3], images["cat/a.png"])
    assert found["label"].tolist() == [0, 0, 1, 0]
    shutil.rmtree(root)
    with pytest.raises(UserError, match="Is the folder still there"):
        streamed.gather(np.arange(2))


# What goes wrong


def test_undecodable_files_are_skipped_and_named_once(tree, capsys):
    root, images = tree
    whole = (root / "cat/a.png").read_bytes()
    (root / "cat/cut.png").write_bytes(whole[: len(whole) // 2])  # its head is whole
    (root / "cat/text.jpg").write_text("no image")
    (root / "dog/empty.webp").write_bytes(b"")
    save(root / "gif.png", noise(0, 8, 8), format="GIF")
    source = load(root)
    np.testing.assert_array_equal(source.arrays["image"], [images[name] for name in sorted(images)])
    assert source.arrays["label"].tolist() == [0, 0, 1, 2]
    out = capsys.readouterr().out
    assert f"skipped 3 of 8 files in {root} that cannot be read as images: cat/text.jpg (no PNG" in out
    assert all(name in out for name in ("dog/empty.webp", "gif.png"))
    assert f"skipped 1 of 5 files in {root} that cannot be read as images: cat/cut.png (image file is truncated)\n" in out


def test_of_many_skipped_files_the_first_are_named(tree, capsys):
    for i in range(12):
        (tree[0] / f"bad{i:02}.png").write_bytes(b"")
    load(tree[0])
    out = capsys.readouterr().out
    assert "skipped 12 of 16" in out and "bad04.png (no PNG, JPEG, WebP, BMP or TIFF), ...\n" in out and "bad05.png" not in out


@pytest.mark.parametrize("content", [b"no image", None])
def test_nothing_but_damaged_files(tmp_path, content):
    save(tmp_path / "a.png", noise(0, 8, 8))
    (tmp_path / "a.png").write_bytes(content or (tmp_path / "a.png").read_bytes()[:60])
    text = error(tmp_path)
    assert "None of the 1 images" in text and "a.png" in text and "data.path" in text


def test_missing_empty_and_wrong_folders(tmp_path):
    assert "--config.data.path=FOLDER" in error("")
    assert "does not exist" in error(tmp_path / "nothing")
    (tmp_path / "file.png").write_bytes(b"")
    assert "is not a folder" in error(tmp_path / "file.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no images" in error(empty) and "found only" not in error(empty)
    for name in ("a.heic", "b.HEIC", "c.gif", "README"):
        (empty / name).write_bytes(b"")
    assert "found only 2 .heic, 1 " in error(empty)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"split": "test"}, "'train'.*found split 'test'"),
        ({"image_size": 0}, "data.image_size is one number, or height and width, .*found 0"),
        ({"channels": "rgba"}, "auto, grey, rgb; found 'rgba'"),
    ],
)
def test_wrong_arguments_are_told(tree, options, match):
    with pytest.raises(UserError, match=match):
        load(tree[0], **options)


@pytest.mark.parametrize("options", [{}, STREAM], ids=["memory", "streamed"])
@pytest.mark.parametrize("limit", [63, 31])  # Pillow itself warns of 64 pixels at 63, and raises at 31
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_and_named(tree, monkeypatch, options, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    assert load(tree[0], **options).num_examples == 4
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    text = error(tree[0] / "dog", **options)
    assert str(tree[0] / "dog/deep/c.png") in text and "pixels" in text and "Remove it, or shrink it" in text


def test_pillows_own_limit_is_kept():
    assert 0 < Image.MAX_IMAGE_PIXELS < 10**8


def test_names_that_are_no_text_can_be_told(tmp_path, capsys):
    bad = os.fsdecode(b"\xff\xfe.png")
    save(tmp_path / "a.png", noise(0, 8, 8))
    (tmp_path / bad).write_bytes(b"")
    assert load(tmp_path).num_examples == 1
    assert "\ufffd\ufffd.png" in capsys.readouterr().out
