"""What a source of images is, and what it gives: the bytes of an image file, with a label or with masks."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sami.data.decode import IMAGE_EXTENSIONS, BrokenImage, image_size, list_images
from sami.data.sources.annotations import code_size, polygons_leave

NO_LABEL = -1


class EncodedImage(NamedTuple):
    """The bytes of one image file and what is known of it."""

    image: bytes
    label: int  # class index, NO_LABEL without one


class AnnotatedImage(NamedTuple):
    """The bytes of one image file and the `segmentation` of each of its objects, not yet decoded."""

    image: bytes
    segmentations: list[Any]
    stated_size: tuple[int, int] | None = None  # (H, W) that the annotations are for; polygons do not say it themselves

    def raster(self) -> tuple[tuple[int, int], bool]:
        """(H, W) of the image that its masks were drawn on, and whether that is upright.

        It is not where they are for the size that the image has before EXIF turns it by 90 degrees. Polygons beyond
        that raster belie it: some tools (Label Studio) show images upright and state the size as it is stored.

        Raises:
            BrokenImage: the image cannot be read, or the annotations are for another size.
        """
        stated = self.stated_size or code_size(self.segmentations)
        size, stored = image_size(self.image), image_size(self.image, upright=False)
        if stated != size and stated == stored and not polygons_leave(self.segmentations, stored):
            return stored, False
        if self.stated_size not in (None, size):
            stated, found = ("x".join(map(str, sides)) for sides in (self.stated_size, size))
            turned = "EXIF turns it: save it upright, or mend the size"
            cause = "rotated, or made smaller?" if size == stored else turned
            raise BrokenImage(f"its masks are for {stated} pixels, and it has {found} ({cause})")
        return size, True


class Images(Protocol):
    """Images in units: a unit is what is read together, a shard or a whole folder."""

    @property
    def counts(self) -> Sequence[int]: ...  # images in each unit

    @property
    def fingerprint(self) -> str: ...  # changes when the images are others

    def name(self, unit: int, row: int) -> str: ...  # where it lies, for messages: file, or shard and key


class Source(Images, Protocol):
    """Images, perhaps with labels. `read` raises BrokenImage where this one image is at fault."""

    def key(self, unit: int, row: int) -> str: ...  # what this image's record in a cache is called

    def read(self, unit: int, row: int) -> EncodedImage: ...


class MaskSource(Images, Protocol):
    """Images with masks. `read` raises BrokenImage where this one image is at fault."""

    def read(self, unit: int, row: int) -> AnnotatedImage: ...


AnySource = Source | MaskSource


class ImageFiles:
    """Image files by number, all of them one unit: what `Source` asks for but `read`.

    Args:
        root: the folder that paths count from.
        files: the paths.
        content: what else tells these images from others.
    """

    def __init__(self, root: Path, files: Sequence[str], content: bytes = b"") -> None:
        self.root, self.counts = root, [len(files)]
        # an array: a million Python strings would be copied into each worker, page by page, as they are looked at
        self.files = np.array([os.fsencode(file) for file in files])
        self.fingerprint = hashlib.sha256(b"\n".join(self.files) + content).hexdigest()[:16]

    def name(self, unit: int, row: int) -> str:
        """The path."""
        return str(self.root / os.fsdecode(self.files[row]))

    def key(self, unit: int, row: int) -> str:
        """The image's number: paths may be long, and differ in their extension alone."""
        return f"{row:08d}"

    def read_bytes(self, row: int, suffix: str | None = None) -> bytes:
        """The image file, or the one beside it with another suffix. Raises BrokenImage where it cannot be opened."""
        path = Path(self.name(0, row))
        try:
            return (path if suffix is None else path.with_suffix(suffix)).read_bytes()
        except OSError as error:
            raise BrokenImage(f"{type(error).__name__}: {error}") from error


def find_files(root: str) -> list[str]:
    """The sorted paths of all images below a folder. Raises ValueError: no such folder, or no image in it."""
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder")
    files = sorted(list_images(Path(root)))
    if not files:
        raise ValueError(f"no image below {root}: looked for {', '.join(IMAGE_EXTENSIONS)}")
    return files
