"""Images with masks on disk, each readable by number: SA-1B's tars, folders in its layout, COCO's JSON files."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sami.data.decode import BrokenImage
from sami.data.sampling import locate_in_file_order
from sami.data.sources.base import AnnotatedImage, ImageFiles, MaskSource, find_files
from sami.data.sources.images import ShardSource
from sami.data.sources.tar_index import TarIndex, load_index, unite_rows


class Sa1bShards(ShardSource):
    """SA-1B's tars as Meta distributes them: `sa_1.jpg` and `sa_1.json`, wherever in the file each lies.

    Args and errors: as of `ShardSource`.
    """

    def __init__(self, shards: str | Sequence[str]) -> None:
        super().__init__(shards)
        self.counts = [len(self.load(path).keys) for path in self.paths]

    def load(self, path: Path) -> TarIndex:
        """The byte ranges, of image and masks in one row even where they are not neighbours."""
        return unite_rows(load_index(path))

    def read(self, unit: int, row: int) -> AnnotatedImage:
        """The image's bytes and the parsed JSON.

        Raises:
            BrokenImage: one of the two is missing, or the JSON is not SA-1B's.
        """
        index, descriptor = self.open_unit(unit)
        image = index.image_span(row)
        record = index.span(row, "json")
        if image is None or record is None:
            raise BrokenImage(f"no {'image' if image is None else '.json'} of this name in the shard")
        return AnnotatedImage(os.pread(descriptor, image[1], image[0]), parse_sa1b(os.pread(descriptor, *record[::-1])))


def parse_sa1b(data: bytes) -> list[Any]:
    """The segmentations in a JSON file of SA-1B. Raises BrokenImage: no JSON, or none with annotations of this kind."""
    try:
        return [annotation["segmentation"] for annotation in json.loads(data)["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenImage(f"its .json is not SA-1B's ({type(error).__name__}: {error})") from error


class Sa1bFolder(ImageFiles):
    """A folder of `name.jpg` (or png, webp, ...) and `name.json` in SA-1B's schema, at any depth.

    Raises:
        ValueError: no such folder, no image in it, or no JSON file in it.
    """

    def __init__(self, root: str) -> None:
        super().__init__(Path(root), find_files(root))
        if next(self.root.rglob("*.json"), None) is None:
            raise ValueError(f"no .json below {root}: masks are expected beside each image, as in SA-1B")

    def read(self, unit: int, row: int) -> AnnotatedImage:
        """The bytes of the image and the parsed JSON beside it.

        Raises:
            BrokenImage: one of the two cannot be read, or the JSON is not SA-1B's.
        """
        return AnnotatedImage(self.read_bytes(row), parse_sa1b(self.read_bytes(row, ".json")))


class CocoSource(ImageFiles):
    """A JSON file in COCO's format and the folder of its images.

    Images without an object to learn from are left out: COCO has such, and they are not broken. Annotations without a
    mask are left out too, and those of crowds, which COCO's own evaluation ignores: they mark many objects as one.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` counts from.

    Raises:
        ValueError: no such file or folder, not COCO's format, or no object in it.
    """

    def __init__(self, annotations: str, images: str) -> None:
        if not Path(annotations).is_file() or not Path(images).is_dir():
            raise ValueError(f"COCO data needs a file and a folder: annotations={annotations}, images={images}")
        objects: dict[int, list[Any]] = {}
        try:
            content = json.loads(Path(annotations).read_bytes())
            for annotation in content["annotations"]:
                if annotation.get("segmentation") and not annotation.get("iscrowd"):
                    objects.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
            known = {image["id"]: image for image in content["images"]}
            names = {number: image["file_name"] for number, image in known.items() if number in objects}
            if strangers := objects.keys() - names.keys():
                raise KeyError(min(strangers))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{annotations} is not COCO's format ({type(error).__name__}: {error})") from error
        if not names:
            raise ValueError(f"{annotations} has no object with a mask")
        # one block of bytes, for the reason that `ImageFiles` has for its array
        texts = [json.dumps(objects[number]).encode() for number in names]
        self.text = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self.ends = np.cumsum([len(text) for text in texts])
        self.sizes = np.array([[known[number].get(name, 0) for name in ("height", "width")] for number in names])
        super().__init__(Path(images), list(names.values()), self.text.tobytes())

    def read(self, unit: int, row: int) -> AnnotatedImage:
        """The bytes of the image and the segmentations of its objects. Raises BrokenImage where it cannot be opened."""
        begin = self.ends[row - 1] if row else 0
        height, width = (int(number) for number in self.sizes[row])
        segmentations = json.loads(self.text[begin : self.ends[row]].tobytes())
        return AnnotatedImage(self.read_bytes(row), segmentations, (height, width) if height and width else None)


class JoinedSources:
    """Several sources as one, their units one after another."""

    def __init__(self, sources: Sequence[MaskSource]) -> None:
        self.sources = list(sources)
        self.counts = [count for source in self.sources for count in source.counts]
        self.fingerprint = " ".join(source.fingerprint for source in self.sources)

    def name(self, unit: int, row: int) -> str:
        """As the source calls it."""
        source, unit = self.locate(unit)
        return source.name(unit, row)

    def read(self, unit: int, row: int) -> AnnotatedImage:
        """As the source reads it."""
        source, unit = self.locate(unit)
        return source.read(unit, row)

    def locate(self, unit: int) -> tuple[MaskSource, int]:
        """The source that a unit belongs to, and its number there."""
        number, unit = locate_in_file_order([len(source.counts) for source in self.sources], unit)
        return self.sources[number], unit


def open_mask_source(where: str | Mapping[str, str] | Sequence[Any]) -> MaskSource:
    """Images with masks from what a user gives.

    Args:
        where: a brace pattern of tars; a folder in SA-1B's layout; a COCO file with `images` beside it, or a folder
            of both; {"annotations": file, "images": folder}; or a list of such, which become one set.

    Raises:
        ValueError: see the sources.
    """
    if isinstance(where, Mapping):
        if set(where) != {"annotations", "images"}:
            raise ValueError(f"{dict(where)}: a COCO set is given as {{annotations: FILE, images: FOLDER}}")
        return CocoSource(where["annotations"], where["images"])
    if not isinstance(where, str):
        sources = [open_mask_source(one) for one in where]
        if not sources:
            raise ValueError("an empty list of data: give tars, folders or COCO files")
        return sources[0] if len(sources) == 1 else JoinedSources(sources)
    path = Path(where)
    if path.suffix == ".json":
        return CocoSource(where, str(path.with_name("images")))
    if path.is_dir():
        file = path / "instances.json"
        return CocoSource(str(file), str(path / "images")) if file.is_file() else Sa1bFolder(where)
    if ".tar" not in where and not path.exists():
        raise ValueError(f"{where}: no such file or folder. Give tars, a folder of images and JSON, or a COCO file")
    return Sa1bShards(where)
