"""Whether a prepared set of tensorflow-datasets (TFDS) may be given to TFDS: it may come from a stranger.

TFDS imports the module of every class that a set's JSON files name, and opens the files that they name. So all of those names
are read here first.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_jax import files
from ddpm_jax.errors import UserError

# The classes that a set may name: TFDS's own, but for Audio, which starts other programs to decode.
FEATURES = frozenset(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "bounding_boxes.BBoxFeature", "class_label_feature.ClassLabel", "dataset_feature.Dataset", "feature.Tensor",
        "features_dict.FeaturesDict", "image_feature.Image", "labeled_image.LabeledImage", "scalar.Scalar",
        "sequence_feature.Sequence", "tensor_feature.Tensor", "text_feature.Text", "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages", "video_feature.Video",
    )
)  # fmt: skip
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # of protobuf's JSON, in both its spellings, and of older TFDS
FILE_KEYS = ("names_file", "labels")  # whose value, where it is one string, TFDS takes for a path
TEMPLATE = re.compile(r"(\{[A-Z_]+\}|[\w.-])+", re.ASCII)  # of the names of a split's files, in their folder

_SHOWN = 80  # characters of a value that a message shows


def check(folder: Path) -> None:
    """Raises UserError unless everything that TFDS imports or opens for the set in `folder` is TFDS's own or lies there.

    It holds regular files (and folders, which TFDS does not look into) alone; the classes in its JSON files are of FEATURES;
    and no name in them leads to a path elsewhere.
    """
    check_files(folder)
    info = read_json(folder / "dataset_info.json")
    features = {"features.json": read_json(folder / "features.json"), "dataset_info.json": info.get("features", {})}
    for file, content in features.items():
        try:
            strings = list(_strings(content))
        except RecursionError:
            raise UserError(f"{folder / file} is nested too deeply for a set of TFDS. Choose another data_dir.") from None
        for key, value in strings:
            if key in CLASS_KEYS and value not in FEATURES:
                raise _refused(folder / file, "the class", value, "TFDS would import its module, which runs it")
            if key in FILE_KEYS:
                raise _refused(folder / file, "the file", value, "TFDS would open it")
    splits = info.get("splits", [])
    for part in [info, *(splits if isinstance(splits, list) else [])]:
        for key, value in part.items() if isinstance(part, dict) else ():
            template = key in ("filepathTemplate", "filepath_template") and value and not TEMPLATE.fullmatch(str(value))
            if template or (key == "name" and "/" in str(value)):
                raise _refused(folder / "dataset_info.json", f"as {key}", value, "It leads out of the folder")


def check_files(folder: Path) -> None:
    """Raises UserError where the folder of a set's version holds a link, a pipe, a device or a socket."""
    for path in sorted(folder.iterdir()):
        if not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{str(path)!r} is a link or a device, and a prepared set holds files alone. Put a file there.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a prepared set. Raises UserError where there is none that can be read."""
    try:
        content = files.read_json(path)
        if not isinstance(content, dict):
            raise files.Unreadable(path, "it holds no JSON object")
        return content
    except files.Unreadable as error:
        raise UserError(f"{path} cannot be read ({error.reason}). Delete {path.parent}, then try again.") from error


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with its key, "" in a list; of a string that is JSON itself, also those in it."""
    if isinstance(node, dict):
        for inner, value in node.items():
            yield from _strings(value, inner)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield key, node
        try:
            inside = json.loads(node)
        except ValueError:
            return
        if not isinstance(inside, str):
            yield from _strings(inside)


def _refused(path: Path, what: str, value: Any, why: str) -> UserError:
    return UserError(
        f"{path} names {what} {str(value)[:_SHOWN]!r}, which is refused: a set of images needs no such thing. {why}. Choose "
        "another --config.data.data_dir, or, where you trust its author, write the images to PNG files and take "
        "--config.data.name=folder."
    )
