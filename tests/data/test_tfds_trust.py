"""A prepared folder of a stranger: whatever its JSON files name, nothing runs and no file elsewhere is opened."""

import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax.data import SOURCES
from ddpm_jax.data.tfds_trust import FEATURES
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import jobs as evaluation
from ddpm_jax.runs import jobs, run, run_directory

EVIL = "payload.Evil"
PROTO = {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}}
LEGACY = {"type": EVIL, "content": {}}
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
INSIDE = json.dumps({"features": {"image": PROTO}})
LABELS = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"


def nested(depth):
    return {"a": nested(depth - 1)} if depth else {}


# What features.json may hold, by how TFDS reads it.
FORMS = {
    "proto": PROTO,
    "in snake case": {"python_class_name": EVIL, "json_feature": {"json": "{}"}},
    "nested": {"pythonClassName": DICT, "featuresDict": {"features": {"image": PROTO}}},
    "older": LEGACY,
    "older and nested": {"type": DICT, "content": {"image": LEGACY}},
    "JSON inside a proto": {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps({"image": LEGACY})}},
    "a proto inside JSON": {"type": DICT, "proto_cls": "tensorflow_datasets.FeaturesDict", "content": INSIDE},
    "a module of its own": {"type": "payload", "content": {}},
    "a file elsewhere": {"type": LABELS, "content": {"names_file": "/etc/hostname"}},
}


@pytest.fixture
def folder(tmp_path, monkeypatch, prepare):
    """A prepared set of two images, and beside it a module that leaves a mark when it is imported."""
    pixels = np.zeros((6, 5, 3), np.uint8)
    features = {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
    prepare(tmp_path / "tfds", [{"image": Image.fromarray(pixels), "label": i} for i in range(2)], features)
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "tfds" / "tiny" / "1.2.3"
    assert not (tmp_path / "mark").exists()
    assert "payload" not in sys.modules


def load(folder, **options):
    return SOURCES["tiny"](split="train", data_dir=str(folder.parent.parent), **options)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("limit", [0, 2048])
@pytest.mark.parametrize("form", FORMS)
def test_no_class_of_features_json_is_imported(folder, form, limit):
    (folder / "features.json").write_text(json.dumps(FORMS[form]))
    with pytest.raises(UserError, match="features.json names the (class|file) '(payload|/etc).* refused.*data.data_dir"):
        load(folder, memory_limit_mb=limit)


def test_no_class_of_dataset_info_json_is_imported(folder):
    edit(folder / "dataset_info.json", lambda info: info.update(features=PROTO))
    with pytest.raises(UserError, match="dataset_info.json names the class 'payload.Evil', which is refused"):
        load(folder)


@pytest.mark.parametrize("key", ["template", "split", "name", "memory"])
def test_no_file_elsewhere_is_read(folder, key):
    """The splits of a set have templates of their files' names."""

    def change(info):
        if key == "name":
            info["name"] = "../../tiny"
        elif key == "split":
            info["splits"][0]["name"] = "../train"
        else:
            info["splits"][0]["filepathTemplate"] = {"template": "/etc/{SPLIT}", "memory": "{SPLIT:>9999999999}"}[key]

    edit(folder / "dataset_info.json", change)
    with pytest.raises(UserError, match="dataset_info.json names as (name|filepathTemplate) .*leads out of the folder"):
        load(folder)


@pytest.mark.parametrize("name", ["label.labels.txt", "features.json", "dataset_info.json", "tiny-train"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_only_files_are_opened(folder, name, kind):
    (path,) = folder.glob(f"{name}*")
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere") if kind == "link" else os.mkfifo(path)
    with pytest.raises(UserError, match="is a link|a device"):
        load(folder)


def test_a_version_that_is_not_finished_is_not_opened_either(folder):
    """TFDS would, for it prepares a set that it knows where none is finished, and reads what is there."""
    (folder / "features.json").unlink()
    (folder / "dataset_info.json").unlink()
    os.mkfifo(folder / "dataset_info.json")
    with pytest.raises(UserError, match="dataset_info.json' is a link or a device"):
        load(folder)


def test_more_classes_than_any_set_has(folder):
    """Whose names would fill up the memory."""
    content = (folder / "features.json").read_text()
    (folder / "features.json").write_text(content.replace('"numClasses": "2"', '"numClasses": "100000000000"'))
    (folder / "label.labels.txt").unlink()
    with pytest.raises(UserError, match="tiny has 100000000000 classes, more than 131072: choose another data_dir"):
        load(folder)


def test_what_is_no_object_or_nested_deeply_is_told(folder):
    for file in ("features.json", "dataset_info.json"):
        before = (folder / file).read_text()
        for text in ("[1]", "null", '{"a":' * 100_000 + "1" + "}" * 100_000):
            (folder / file).write_text(text)
            with pytest.raises(UserError, match=f"{file} (cannot be read|is nested)"):
                load(folder)
        (folder / file).write_text(before)
    (folder / "features.json").write_text(json.dumps(nested(900)))
    with pytest.raises(UserError, match="features.json|is damaged"):
        load(folder)


@pytest.mark.parametrize("way", ["data_dir", "continued", "evaluated"])
def test_every_way_in(folder, tmp_path, monkeypatch, way):
    """A data_dir of the command; a run that names one, continued; and evaluated."""
    (folder / "features.json").write_text(json.dumps(FORMS["nested"]))
    config = configs.base()
    config.data.update(name="tiny", data_dir=str(folder.parent.parent))
    config.eval.update(bpd=True, split="train")
    workdir = tmp_path / "run"
    if way != "data_dir":
        run_directory.write(workdir, config, (6, 5, 3), 2)
        config = run_directory.read(workdir)[0]
    monkeypatch.setattr(run, "restore", lambda *_: None)
    with pytest.raises(UserError, match="names the class 'payload.Evil'"):
        (evaluation if way == "evaluated" else jobs).JOBS["eval" if way == "evaluated" else "train"](config, workdir)


def test_sets_of_older_tfds_are_read(folder):
    before = load(folder)
    legacy = tfds.builder_from_directory(str(folder)).info.features.to_json()
    assert legacy["type"] == DICT
    (folder / "features.json").write_text(json.dumps(legacy))
    after = load(folder, memory_limit_mb=0)
    assert (after.image_shape, after.num_classes) == (before.image_shape, before.num_classes) == ((6, 5, 3), 2)


def test_the_list_is_of_tfds_own_classes():
    registered = tfds.features.FeatureConnector._registered_features
    own = {name for name in registered if name.startswith("tensorflow_datasets.core.features.")}
    others = {"audio_feature.Audio", "top_level_feature.TopLevelFeature"}
    assert own == FEATURES | {f"tensorflow_datasets.core.features.{name}" for name in others}
