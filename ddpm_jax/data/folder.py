"""A folder of the user's own images: PNG, JPEG, WebP, BMP and TIFF, of any sizes."""

import contextlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax import files
from ddpm_jax.data.identity import Identity, digest, natural
from ddpm_jax.data.source import MEMORY_LIMIT_MB, Source, Streamed, decoders
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.terminal import say, shown

CHANNELS = {"auto": 0, "grey": 1, "rgb": 3}
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_NAMES = "PNG, JPEG, WebP, BMP or TIFF"
_NAMED = 5  # files that a message names, at most
_TRIES = 100  # files in a row that cannot be read, after which a streamed folder counts as lost


def load(
    *,
    split: str,
    path: str,
    image_size: int | Sequence[int],
    channels: str = "auto",
    memory_limit_mb: int = MEMORY_LIMIT_MB,
) -> Source | Streamed:
    """The images under `path`, each centre-cropped and resized to uint8 [height, width, C], by sorted paths.

    image_size: the height and the width, or one number for both.

    All files with an ending of _ENDINGS under `path` count, in its sub-folders too, but for hidden ones and those behind
    links to folders; how many files of other endings were passed over is printed. The label of an image is the place of its
    first sub-folder among those that hold images, in natural order: 2 before 10. Without sub-folders every label is 0.

    An image is turned as its EXIF orientation says, laid on white where it is transparent, and the largest part around its
    centre that has the shape wanted is resized (bicubic, antialiased; smaller images are enlarged). Large JPEGs are decoded
    at a half, quarter or eighth of their size where that is at least twice `image_size`. Colour profiles are not applied; of
    animations the first image counts; 16-bit grey is rounded to 8.

    `channels`: "grey" or "rgb" turns every image into that; "auto" asks that all are grey, or all colour (images with a
    palette, and all WebPs, are colour).

    Files that cannot be read are skipped and named. A set of more than `memory_limit_mb` MiB when decoded (0: every set) is
    `Streamed`: then only the heads of the files are looked at before, and where a file cannot be decoded later, the next
    one in the order that can be stands in its place.

    Raises UserError for a folder that is missing or without images, images beside sub-folders, a mixture of grey and colour,
    an image of more pixels than Pillow's limit against decompression bombs, and for wrong arguments.
    """
    if split != "train":
        raise UserError(f"A folder of images has one split, 'train', which holds all of them; found split {split!r}.")
    sizes = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise UserError(f"data.image_size is one number, or height and width, of at least 1; found {image_size}. Give 64,128.")
    if channels not in CHANNELS:
        raise UserError(f"channels is one of {', '.join(CHANNELS)}; found {channels!r}.")
    if not path:
        raise UserError(f"No folder of images is named: pass --config.data.path=FOLDER, with {_NAMES} files in it.")
    root = Path(path).expanduser()
    names = names_in(root)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # `_open` refuses the sizes that Pillow only warns of
        names, num_channels = _look(root, names, channels)
        labels, classes = _label(root, names)
        shape = (sizes[0], sizes[-1], num_channels)
        where = f" in {len(classes)} classes, the sub-folders" if len(classes) > 1 else ""
        say(f"reading {len(names)} images from {root}{where}")
        identity, num_classes = _identity(root, names, labels, classes), max(1, len(classes))
        if len(names) * math.prod(shape) > memory_limit_mb * 2**20:
            return Streamed(len(names), shape, num_classes, Reader(root, names, labels, shape).gather, identity)

        images = np.empty((len(names), *shape), np.uint8)

        def decode(i: int) -> Failure | None:
            pixels = _try(_pixels, root / names[i], shape)
            if isinstance(pixels, Failure):
                return pixels
            images[i] = pixels

        failures = list(decoders().map(decode, range(len(names))))
    if any(failures):
        _tell_skipped(root, names, failures)
        good = np.array([failure is None for failure in failures])
        images, labels = images[good], labels[good]
    return Source({"image": images, "label": labels}, num_classes, identity)


class Reader(NamedTuple):
    """Decodes images on access: example i is the file names[i], or the next one that can be decoded."""

    root: Path
    names: list[str]
    labels: np.ndarray
    shape: tuple[int, int, int]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, labels = zip(*decoders().map(self._example, np.asarray(indices).tolist()), strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}

    def _example(self, index: int) -> tuple[np.ndarray, int]:
        for offset in range(min(_TRIES, len(self.names))):
            i = (index + offset) % len(self.names)
            pixels = _try(_pixels, self.root / self.names[i], self.shape)
            if not isinstance(pixels, Failure):
                return pixels, int(self.labels[i])
            if offset == 0:
                name = shown(self.names[i])
                say(f"{name} cannot be decoded ({pixels.reason}): the next image is read in its place")
        raise UserError(
            f"{shown(self.names[index])} and the files after it in {self.root} cannot be read any more. "
            "Is the folder still there? Start the same command again to continue."
        )


def names_in(root: Path, key: str = "data.path") -> list[str]:
    """The images' paths below the root, with "/" between folders, sorted. key: the config's, which errors name."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"config.{key}={str(root)!r} {what}. Pass a folder with {_NAMES} files in it.")
    names, others = [], Counter()

    def refuse(error: OSError):
        raise UserError(f"{shown(str(error.filename))} cannot be listed ({error.strerror}). Allow it, or move it.") from error

    for folder, subfolders, inside in os.walk(root, onerror=refuse, followlinks=False):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in inside:
            if file.startswith("."):
                continue
            if file.lower().endswith(_ENDINGS):
                names.append((Path(folder) / file).relative_to(root).as_posix())
            else:
                others[Path(file).suffix.lower() or "without ending"] += 1
    found = _listed([f"{count} {ending}" for ending, count in others.most_common()])
    if not names:
        raise UserError(
            f"{root} holds no images: looked for {', '.join(_ENDINGS)} in it and its sub-folders"
            + (f", found only {found}" if found else "")
            + f". Pass another --config.{key}, or convert the images to PNG or JPEG."
        )
    if found:
        say(f"passed over {others.total()} files in {root} that are not called {', '.join(_ENDINGS)}: {found}")
    return sorted(names)


def _label(root: Path, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """(labels [N], the names of the classes). Raises UserError for images beside sub-folders with images."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = sorted(set(folders), key=natural)
    if len(classes) > 1 and not classes[0]:
        stray = [name for name in names if "/" not in name]
        raise UserError(
            f"{root} holds images ({len(stray)}: {_listed(stray)}) beside sub-folders with images ({_listed(classes[1:])}), "
            "which are classes. Move these images away, or into a sub-folder of their own, which then is a class too."
        )
    numbers = {folder: i for i, folder in enumerate(classes)}
    return np.array([numbers[folder] for folder in folders], np.int32), list(filter(None, classes))


def _identity(root: Path, names: list[str], labels: np.ndarray, classes: list[str]) -> Identity:
    """Which images these are: of each class the number of its files, and a digest of their names and sizes."""
    sizes = decoders().map(lambda name: os.stat(root / name).st_size, names)
    lines = [f"{size} {shown(name)}\n".encode() for size, name in zip(sizes, names, strict=True)]
    files = {}
    for label, folder in enumerate(classes or ["."]):
        own = [lines[i] for i in np.flatnonzero(labels == label)]
        files[shown(folder)] = f"{len(own)} files, digest {digest(*own)}"
    return {"set": "folder", "files": files} | ({"classes": [shown(folder) for folder in classes]} if classes else {})


def _look(root: Path, names: list[str], channels: str) -> tuple[list[str], int]:
    """(the names whose heads can be read, the number of channels)."""
    greys = list(decoders().map(lambda name: _try(_is_grey, root / name), names))
    failures = [grey if isinstance(grey, Failure) else None for grey in greys]
    if any(failures):
        _tell_skipped(root, names, failures)
    kinds = {kind: [name for name, grey in zip(names, greys, strict=True) if grey is kind] for kind in (True, False)}
    if channels == "auto" and kinds[True] and kinds[False]:
        raise UserError(
            f"{root} holds {len(kinds[True])} grey images (as {shown(kinds[True][0])}) and {len(kinds[False])} in colour (as "
            f"{shown(kinds[False][0])}). Set --config.data.channels=rgb or grey to turn all of them into one kind."
        )
    readable = [name for name, failure in zip(names, failures, strict=True) if failure is None]
    return readable, CHANNELS[channels] or (1 if kinds[True] else 3)


class Failure(NamedTuple):
    """Why a file cannot be read."""

    reason: str


def _tell_skipped(root: Path, names: list[str], failures: list[Failure | None]) -> None:
    """Prints what is skipped. Raises UserError where nothing is left."""
    skipped = [f"{name} ({failure.reason})" for name, failure in zip(names, failures, strict=True) if failure]
    told = _listed(skipped)
    if len(skipped) == len(names):
        raise UserError(
            f"None of the {len(names)} images in {root} can be read: {told}. They are damaged, or not {_NAMES}, "
            "whatever their names say. Convert them, or pass another --config.data.path."
        )
    say(f"skipped {len(skipped)} of {len(names)} files in {root} that cannot be read as images: {told}")


def _listed(names: list[str]) -> str:
    """The first of them, as they can be printed."""
    return ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _try(function, path: Path, *args):
    """function(path, *args), or a `Failure`. Raises UserError for a decompression bomb."""
    try:
        return function(path, *args)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{shown(str(path))} is refused: {error} It may be made to fill up the memory. Remove it, or shrink it, then "
            "try again."
        ) from error
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        return Failure(f"no {_NAMES}")
    except Exception as error:  # damaged files surface as anything: OSError, SyntaxError, ValueError, zlib.error
        tell_machine(error)
        return Failure(str(getattr(error, "strerror", None) or error or type(error).__name__))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The image, of which only the head is read. Pillow raises at twice its limit; here, everything above it is refused.

    Raises ValueError for pixels of 32 bits, as TIFFs have them, which do not say what is black and what is white.
    """
    with files.open_existing(path, follow=True) as file, Image.open(file, formats=_FORMATS) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels, more than the limit of {limit}.")
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits, not 8 or 16")
        yield image


def _is_grey(path: Path) -> bool:
    with _open(path) as image:
        return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def exactly(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image in a file, uint8 of that shape, neither resized nor cut. UserError where it is of another size, or none."""
    pixels = _try(_unresized, path, shape[2])
    if isinstance(pixels, Failure):
        raise UserError(f"{shown(str(path))} cannot be read as an image ({pixels.reason}). Give a {_NAMES} file.")
    if pixels.shape != shape:
        (height, width, _), (wanted_height, wanted_width, _) = pixels.shape, shape
        raise UserError(
            f"{shown(str(path))} is {height} pixels high and {width} wide, and the run's images are {wanted_height} high and "
            f"{wanted_width} wide: bring it to that size."
        )
    return pixels


def _unresized(path: Path, channels: int) -> np.ndarray:
    with _open(path) as image:
        image = _converted(image, channels)
        return np.asarray(image).reshape(image.height, image.width, channels)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Upright, on white, grey or RGB, 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image as `load` describes it, uint8 of that shape."""
    height, width, channels = shape
    with _open(path) as image:
        if image.format == "JPEG":
            scale = 2 * max(height, width) / min(image.size)
            image.draft(image.mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image = _converted(image, channels)
        across = min(image.width, max(1, round(image.height * width / height)))
        down = min(image.height, max(1, round(image.width * height / width)))
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
        return np.asarray(image).reshape(shape)
