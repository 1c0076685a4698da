import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from masked_images import (
    HEIGHT,
    WIDTH,
    draw_masks,
    rle,
    sa1b_files,
    sa1b_record,
    write_coco,
    write_sa1b_folder,
    write_sa1b_tars,
)

from sami.data.datasets import Index
from sami.data.decode import BrokenImage
from sami.data.finetuning import ExactObjects, SomeMasks
from sami.data.sampling import locate_in_file_order
from sami.data.sources.masks import CocoSource, JoinedSources, Sa1bFolder, Sa1bShards, open_mask_source
from sami.data.square import FrameSpec


def read_all(source) -> dict[str, tuple[bytes, list]]:
    """By file name."""
    images = {}
    for number in range(sum(source.counts)):
        place = locate_in_file_order(source.counts, number)
        images[Path(source.name(*place).split(": ")[-1]).stem] = tuple(source.read(*place))
    return images


def expected(seeds: range) -> dict[str, tuple[bytes, list]]:
    images = {}
    for seed in seeds:
        image, record = sa1b_files(seed).values()
        images[f"sa_{seed}"] = image, [a["segmentation"] for a in json.loads(record)["annotations"]], None
    return images


@pytest.mark.parametrize("images_first", [False, True])
def test_tars_of_sa1b_whatever_the_order_of_their_members(tmp_path, images_first) -> None:
    paths = write_sa1b_tars(tmp_path / "tars", [3, 4], images_first=images_first)
    source = open_mask_source(str(tmp_path / "tars" / "sa_{000000..000001}.tar"))
    assert isinstance(source, Sa1bShards) and list(source.counts) == [3, 4]
    assert read_all(source) == expected(range(7))
    assert source.name(1, 2) == f"{paths[1]}: ./sa_5"
    assert read_all(pickle.loads(pickle.dumps(source))) == expected(range(7))


def test_a_tar_may_lack_a_member(tmp_path) -> None:
    import tarfile

    path = write_sa1b_tars(tmp_path, [2])[0]
    with tarfile.open(path) as tar, tarfile.open(tmp_path / "less.tar", "w") as less:
        for member in tar:
            if member.name != "./sa_1.json":
                less.addfile(member, tar.extractfile(member))
    source = Sa1bShards(str(tmp_path / "less.tar"))
    assert source.read(0, 0).segmentations
    with pytest.raises(BrokenImage, match=r"no \.json of this name"):
        source.read(0, 1)


def test_folder_in_sa1bs_layout(tmp_path) -> None:
    source = open_mask_source(str(write_sa1b_folder(tmp_path / "images", 5)))
    assert isinstance(source, Sa1bFolder) and read_all(source) == expected(range(5))


@pytest.mark.parametrize(
    ("record", "message"), [(b"{", "JSONDecodeError"), (b"[]", "TypeError"), (b'{"annotations": [1]}', "TypeError")]
)
def test_a_broken_json_is_a_broken_image(tmp_path, record, message) -> None:
    source = Sa1bFolder(str(write_sa1b_folder(tmp_path, 2)))
    (tmp_path / "sa_0.json").write_bytes(record)
    with pytest.raises(BrokenImage, match=message):
        source.read(0, 0)
    (tmp_path / "sa_1.json").unlink()
    with pytest.raises(BrokenImage, match="FileNotFoundError"):
        source.read(0, 1)


def test_coco(tmp_path) -> None:
    root = write_coco(tmp_path / "coco", 4)
    by_folder, by_file = open_mask_source(str(root)), open_mask_source(str(root / "instances.json"))
    explicit = open_mask_source({"annotations": str(root / "instances.json"), "images": str(root / "images")})
    for source in (by_folder, by_file, explicit):
        assert isinstance(source, CocoSource) and source.counts == [3]  # an image without an object is left out
        images = read_all(source)
        assert images.keys() == {"0000", "0002", "0003"}
        image, segmentations, size = images["0002"]
        assert size == (HEIGHT, WIDTH)
        assert image == (root / "images" / "0002.jpg").read_bytes()
        assert len(segmentations) == 3 and segmentations[2] == rle(draw_masks(2, 4)[2])  # without the crowd
    assert by_folder.fingerprint == explicit.fingerprint


def test_coco_annotations_without_a_mask_are_none(tmp_path) -> None:
    file = write_coco(tmp_path / "coco", 1) / "instances.json"
    content = json.loads(file.read_text())
    kept = [annotation["segmentation"] for annotation in content["annotations"][:2]]
    content["annotations"][2]["segmentation"] = []
    del content["annotations"][3]["segmentation"]
    content["images"].append({"id": 5, "file_name": "none.jpg"})
    content["annotations"].append({"image_id": 5, "segmentation": []})
    file.write_text(json.dumps(content))
    source = open_mask_source(str(file))
    assert source.counts == [1] and source.read(0, 0).segmentations == kept


@pytest.mark.parametrize("stated", [(WIDTH, HEIGHT), (2 * HEIGHT, 2 * WIDTH)])
def test_polygons_for_an_image_of_another_size_are_a_broken_image(tmp_path, stated) -> None:
    """They do not say themselves what they were drawn on: turned by EXIF, or a smaller copy of the image."""
    file = write_coco(tmp_path / "coco", 1) / "instances.json"
    content = json.loads(file.read_text())
    content["images"][0]["height"], content["images"][0]["width"] = stated
    file.write_text(json.dumps(content))
    image = open_mask_source(str(file)).read(0, 0)
    with pytest.raises(BrokenImage, match=f"masks are for {stated[0]}x{stated[1]} pixels, and it has 48x64"):
        image.raster()
    rng, spec = np.random.default_rng(0), FrameSpec(64, 16, "stretch", 0.9)
    for make in (SomeMasks(spec, 3, 0.0), ExactObjects(spec, 3)):
        with pytest.raises(BrokenImage, match="masks are for"):
            make(image, rng, Index(0, 0, 0))
    for side in ("height", "width"):
        del content["images"][0][side]
    file.write_text(json.dumps(content))
    assert open_mask_source(str(file)).read(0, 0).raster() == ((HEIGHT, WIDTH), True)


def test_several_sources_are_one(tmp_path) -> None:
    folder, coco = write_sa1b_folder(tmp_path / "a", 3), write_coco(tmp_path / "b", 4)
    tars = write_sa1b_tars(tmp_path / "c", [2, 1])
    source = open_mask_source([str(folder), str(coco), *tars])
    assert isinstance(source, JoinedSources) and source.counts == [3, 3, 2, 1]
    assert np.array_equal([len(source.read(u, 0).segmentations) for u in range(4)], [1, 3, 1, 3])
    assert source.name(1, 1) == str(coco / "images" / "0002.jpg") and "sa_2" in source.name(3, 0)
    assert source.fingerprint != open_mask_source([str(coco), str(folder), *tars]).fingerprint


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{tmp}/none.tar", "1 of the 1 shards"),
        ("{tmp}/empty", "no image below"),
        ("{tmp}/files", "no .json below"),
        ("{tmp}/list.json", "needs a file and a folder"),
        ({"annotations": "{tmp}/list.json", "images": "{tmp}/files"}, "is not COCO's format"),
        ({"annotations": "{tmp}/none.json", "images": "{tmp}/files"}, "needs a file and a folder"),
        ({"file": "x"}, "a COCO set is given as"),
        ([], "an empty list of data"),
        ({"annotations": "{tmp}/nothing.json", "images": "{tmp}/files"}, "no object with a mask"),
    ],
)
def test_mistakes(tmp_path, where, message) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(b"")
    (tmp_path / "list.json").write_bytes(sa1b_record(0, draw_masks(0, 1)))
    (tmp_path / "nothing.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    where = json.loads(json.dumps(where).replace("{tmp}", str(tmp_path)))
    with pytest.raises(ValueError, match=message):
        open_mask_source(where)
