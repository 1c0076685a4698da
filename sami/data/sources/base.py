"""What a source of images is, and what it gives: the bytes of an image file, with a label or with masks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from sami.data.images import BrokenImage, image_size
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
            cause = (
                "rotated, or made smaller?" if size == stored else "EXIF turns it: save it upright, or mend the size"
            )
            raise BrokenImage(f"its masks are for {stated} pixels, and it has {found} ({cause})")
        return size, True


class Source(Protocol):
    """Images in units: a unit is what is read together, a shard or a whole folder."""

    @property
    def counts(self) -> Sequence[int]:
        """Images in each unit."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the images are others."""
        ...

    def name(self, unit: int, row: int) -> str:
        """Where this image lies, for messages: file, or shard and key."""
        ...

    def key(self, unit: int, row: int) -> str:
        """What this image's record in a cache is called."""
        ...

    def read(self, unit: int, row: int) -> EncodedImage:
        """The bytes. Raises BrokenImage where this one image is at fault."""
        ...


class MaskSource(Protocol):
    """Images with masks in units, else as `sami.data.sources.images.Source`."""

    @property
    def counts(self) -> Sequence[int]: ...

    @property
    def fingerprint(self) -> str: ...

    def name(self, unit: int, row: int) -> str: ...

    def read(self, unit: int, row: int) -> AnnotatedImage: ...
