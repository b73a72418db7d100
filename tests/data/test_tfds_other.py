"""Sets of TFDS that this project does not know by name, made by small builders; and streaming of prepared sets."""

import json
import shlex
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data import SOURCES, Source, Streamed
from ddpm_jax.errors import UserError

N = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
IMAGE = tfds.features.Image(shape=(6, 5, 3))
LABEL = tfds.features.ClassLabel(num_classes=7)


def examples(labelled=True):
    for i, pixels in enumerate(PIXELS):
        yield {"image": Image.fromarray(pixels), **({"label": i % 7} if labelled else {})}


def load(root, name="tiny", split="train", **options):
    return SOURCES[name](split=split, data_dir=str(root), **options)


def in_order(source):
    """The numbers of the examples in `PIXELS`, found by their pixels."""
    numbers = {pixels.tobytes(): i for i, pixels in enumerate(PIXELS)}
    return [numbers[image.tobytes()] for image in source.gather(np.arange(source.num_examples))["image"]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, prepare):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root, examples(), {"image": IMAGE, "label": LABEL})
    return root


def to_tfrecord(root, shards):
    """The prepared set as the TFRECORD files of TFDS with TensorFlow, by hand."""
    from array_record.python.array_record_module import ArrayRecordReader

    folder = root / "tiny" / "1.2.3"
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (path,) = folder.glob("*array_record*")
    reader = ArrayRecordReader(str(path))
    parts = np.array_split(np.arange(N), shards)
    info["splits"][0]["shardLengths"] = [str(len(part)) for part in parts]
    for i, part in enumerate(parts):
        with (folder / f"tiny-train.tfrecord-{i:05d}-of-{shards:05d}").open("wb") as file:
            for record in reader.read(part.tolist()):
                file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
    path.unlink()
    (folder / "dataset_info.json").write_text(json.dumps(info))


# Reading


def test_a_prepared_set_is_read_by_its_name(prepared):
    source = load(prepared)
    assert isinstance(source, Source)
    assert (source.num_examples, source.image_shape, source.num_classes) == (N, (6, 5, 3), 7)
    order = in_order(source)
    assert sorted(order) == list(range(N))
    assert source.arrays["label"].tolist() == [i % 7 for i in order]
    assert (source.arrays["image"].dtype, source.arrays["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("label", [None, "seven", 7])
def test_without_class_labels_every_label_is_0(tmp_path, label, prepare):
    features = {None: {}, "seven": {"label": tfds.features.Text()}, 7: {"label": tfds.features.Scalar(np.int64)}}[label]
    value = {} if label is None else {"label": label}
    prepare(tmp_path, (example | value for example in examples(labelled=False)), {"image": IMAGE, **features})
    source = load(tmp_path)
    assert (source.arrays["label"].tolist(), source.num_classes) == ([0] * N, 1)


def test_a_set_that_does_not_say_its_shape(tmp_path, prepare):
    anything = {"image": tfds.features.Image(shape=(None, None, 3)), "label": LABEL}
    prepare(tmp_path, examples(), anything)
    assert load(tmp_path).image_shape == load(tmp_path, memory_limit_mb=0).image_shape == (6, 5, 3)
    mixed = [{"image": Image.new("RGB", (5, 6 + (i == 3))), "label": 0} for i in range(9)]
    prepare(tmp_path / "mixed", mixed, anything)
    for act in (
        lambda: load(tmp_path / "mixed"),
        lambda: load(tmp_path / "mixed", memory_limit_mb=0).gather(np.arange(9)),
    ):
        with pytest.raises(UserError, match="several shapes.*data.name=folder"):
            act()


def test_configs_of_a_set(tmp_path, prepare):
    prepare(tmp_path, examples(), {"image": IMAGE, "label": LABEL}, config="small")
    assert sorted(in_order(load(tmp_path))) == sorted(in_order(load(tmp_path, "tiny/small"))) == list(range(N))
    prepare(tmp_path, examples(), {"image": IMAGE, "label": LABEL}, config="other")
    with pytest.raises(UserError, match="2 configs.*tiny/other or tiny/small"):
        load(tmp_path)
    assert load(tmp_path, "tiny/other").num_examples == N


def test_the_identity_is_of_the_set_and_of_what_it_holds(tmp_path, prepare):
    """Its name and version, its classes, and a digest of pixels where every machine decodes them alike."""
    names = ["T-shirt/top", "bag", "3", "4", "5", "6", "7"]
    identities = {}
    for change, encoding in (("", "png"), ("label", "png"), ("pixels", "png"), ("", "jpeg"), ("pixels", "jpeg")):
        features = {
            "image": tfds.features.Image(shape=(6, 5, 3), encoding_format=encoding),
            "label": tfds.features.ClassLabel(names=names),
        }
        made = [dict(example) for example in examples()]
        if change == "label":
            made[0]["label"] = 6
        if change == "pixels":
            made[0]["image"] = Image.new("RGB", (5, 6))
        prepare(tmp_path / (change + encoding), made, features, config="small")
        source = load(tmp_path / (change + encoding))
        identities[change + encoding] = source.identity
        assert source.class_names == tuple(names)
    first = identities["png"]
    assert {**first, "digest": ""} == {
        "set": "tiny/small/1.2.3", "split": "train", "examples": N, "classes": names, "digest": "",
    }  # fmt: skip
    assert first["digest"] not in (identities["labelpng"]["digest"], identities["pixelspng"]["digest"])
    assert identities["jpeg"] == identities["pixelsjpeg"]


# Streaming


@pytest.mark.parametrize("shards", [0, 1, 4], ids=["array_record", "tfrecord", "tfrecords"])
def test_streamed_equals_in_memory(prepared, tmp_path, shards):
    import shutil

    root = shutil.copytree(prepared, tmp_path / "tfds")
    held = load(root)
    if shards:
        to_tfrecord(root, shards)
    streamed = load(root, memory_limit_mb=0)
    assert isinstance(streamed, Streamed)
    for name in ("num_examples", "image_shape", "num_classes", "identity", "class_names"):
        assert getattr(held, name) == getattr(streamed, name)
    for indices in ([22], [5, 0, 5, 17], np.random.default_rng(1).permutation(N)):
        indices = np.array(indices, np.int32)
        expected, found = held.gather(indices), streamed.gather(indices)
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype


def test_the_limit_is_of_pixels(prepared):
    assert isinstance(load(prepared, memory_limit_mb=1), Source)
    assert isinstance(SOURCES["tiny"](split="train", data_dir=str(prepared), memory_limit_mb=0), Streamed)


@pytest.mark.parametrize("when", ["before", "later"])
def test_a_damaged_set_is_told_when_streamed(prepared, tmp_path, when):
    import shutil

    root = shutil.copytree(prepared, tmp_path / "tfds")
    to_tfrecord(root, 1)
    (path,) = (root / "tiny/1.2.3").glob("*tfrecord*")
    streamed = load(root, memory_limit_mb=0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short.*delete that folder"):
        load(root, memory_limit_mb=0) if when == "before" else streamed.gather(np.arange(N))


# What goes wrong


def test_the_command_that_prepares_a_set(tmp_path):
    """It is taken apart as a shell would, and run up to what needs TensorFlow."""
    root = tmp_path / "it's here"
    with pytest.raises(UserError, match="svhn_cropped is not prepared in") as error:
        load(root, "svhn_cropped")
    command = str(error.value).partition("pip install tensorflow-cpu && ")[2]
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    calls = []

    class Recorder:
        def download_and_prepare(self, **options):
            calls.append(options)

    def builder(*args, **options):
        calls.append((args, options))
        return Recorder()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tfds, "builder", builder)
        exec(code, {})
    assert calls == [(("svhn_cropped",), {"data_dir": str(root)}), {"file_format": "array_record"}]
    assert not root.exists()


def test_a_set_in_another_form_is_told(tmp_path):
    (tmp_path / "svhn_cropped" / "3.1.0").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no finished set.*tensorflow-cpu"):
        load(tmp_path, "svhn_cropped")


@pytest.mark.parametrize(("name", "near"), [("svhn_croped", "svhn_cropped"), ("mnits", "mnist"), ("digit", "digits")])
def test_an_unknown_name_tells_the_nearest(tmp_path, name, near):
    with pytest.raises(UserError, match=f"no data set '{name}'.*Did you mean.*{near}.*data.name=folder"):
        load(tmp_path, name)


def test_nothing_near(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path, "qqqqqqqq")
    assert "Did you mean" not in str(error.value)


def test_an_unknown_split_lists_the_splits(prepared):
    with pytest.raises(UserError, match="splits train; found split 'test'"):
        load(prepared, split="test")


def test_sets_that_are_no_images_are_told(tmp_path, prepare):
    prepare(tmp_path / "text", [{"text": "a"}], {"text": tfds.features.Text()})
    with pytest.raises(UserError, match="no set of images.*text"):
        load(tmp_path / "text")
    deep = {"image": tfds.features.Tensor(shape=(6, 5, 3), dtype=np.float32)}
    prepare(tmp_path / "float", [{"image": np.zeros((6, 5, 3), np.float32)}], deep)
    with pytest.raises(UserError, match="no set of images.*float32"):
        load(tmp_path / "float")


def test_a_split_without_labels_is_told(tmp_path, prepare):
    unknown = [{"image": Image.fromarray(PIXELS[0]), "label": -1}]
    prepare(tmp_path, unknown, {"image": IMAGE, "label": LABEL}, split="test")
    with pytest.raises(UserError, match="a label -1, outside 0 .. 6"):
        load(tmp_path, split="test")
