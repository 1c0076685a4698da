"""A folder of images to shards: every kind of image, nothing lost, nothing half written."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from sami.data.sources.drawn_scenes import draw_scene
from sami.packing.pack import pack_images

ROOT = Path(__file__).resolve().parents[2]
IMAGE = Image.fromarray(draw_scene(0, 0, size=128).image).resize((160, 120))


def save(path, image=IMAGE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def read(target, prefix="train"):
    urls = sorted(str(path) for path in target.glob(f"{prefix}-*.tar"))
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def pack_one(tmp_path, image, name, *, short_side=None, **options):
    """The extension and bytes a single image is stored as."""
    save(tmp_path / "in" / name, image, **options)
    pack_images(tmp_path / "in", tmp_path / "out", short_side=short_side, num_workers=0, max_broken_rate=0)
    (stored,) = read(tmp_path / "out")
    ((extension, data),) = [(key, value) for key, value in stored.items() if not key.startswith("_")]
    return extension, data


def decode(data):
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG" and image.mode == "RGB"
    return np.asarray(image).astype(int)


def class_folder(source, num_images=12):
    for number in range(num_images):
        save(source / ("dog", "cat", "an owl")[number % 3] / f"v1.{number}.image.jpg", IMAGE.rotate(number))
    return source


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_copies_every_file_once_with_its_class(tmp_path):
    source = class_folder(tmp_path / "in")
    assert pack_images(source, tmp_path / "out", shard_size=5, num_workers=0) == (12, 0)
    samples = read(tmp_path / "out")
    assert list(tars(tmp_path / "out")) == [f"train-{i:06d}.tar" for i in range(3)]
    names = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert names == ["an owl", "cat", "dog"]
    packed = {(names[int(stored["cls"])], stored["jpg"]) for stored in samples}
    assert packed == {(path.parent.name, path.read_bytes()) for path in source.rglob("*.jpg")}
    assert len({stored["__key__"] for stored in samples}) == 12
    assert not any("." in stored["__key__"] for stored in samples)


def test_order_is_shuffled_by_the_seed_alone(tmp_path):
    source = class_folder(tmp_path / "in", 30)
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        pack_images(source, tmp_path / name, seed=seed, num_workers=0)
    labels = {name: [int(stored["cls"]) for stored in read(tmp_path / name)] for name in "ac"}
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert labels["a"] != labels["c"] and sorted(labels["a"]) == sorted(labels["c"]) != labels["a"]


def test_without_subfolders_there_is_no_class_and_equal_stems_stay_apart(tmp_path):
    for name in ("a.b.jpg", "a.c.jpg", "a_b.jpg", "a.b.png", "Ä ö.JPEG", "x" * 200 + ".webp"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    save(tmp_path / "in" / ".hidden.jpg")
    assert pack_images(tmp_path / "in", tmp_path / "out", num_workers=0) == (6, 0)
    samples = read(tmp_path / "out")
    assert len(samples) == 6 and not any("cls" in stored for stored in samples)
    assert max(len(stored["__key__"]) for stored in samples) < 95  # longer names need more than a plain tar header
    assert sorted(key for stored in samples for key in stored if key[0] != "_") == ["jpg"] * 4 + ["png", "webp"]
    assert not (tmp_path / "out" / "classes.json").exists()


def test_extension_follows_the_content_not_the_name(tmp_path):
    extension, data = pack_one(tmp_path, IMAGE, "really_png.JPEG", format="PNG")
    assert extension == "png" and data == (tmp_path / "in" / "really_png.JPEG").read_bytes()


@pytest.mark.parametrize("size", [(160, 120), (120, 160), (641, 479), (100, 3000)])
def test_short_side_shrinks_and_keeps_the_aspect(tmp_path, size):
    extension, data = pack_one(tmp_path, IMAGE.resize(size), "a.jpg", short_side=64)
    height, width, _ = decode(data).shape
    assert extension == "jpg" and min(height, width) == 64
    assert abs(width - 64 * size[0] / min(size)) <= 1 and abs(height - 64 * size[1] / min(size)) <= 1
    expected = np.asarray(IMAGE.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert abs(decode(data) - expected).mean() < 20  # the same picture: another one differs by about 60


@pytest.mark.parametrize("short_side", [120, 140, 500])
def test_small_images_are_never_enlarged(tmp_path, short_side):
    (tmp_path / "jpg").mkdir()
    _, data = pack_one(tmp_path / "jpg", IMAGE, "a.jpg", short_side=short_side, quality=30)
    assert data == (tmp_path / "jpg" / "in" / "a.jpg").read_bytes()
    extension, data = pack_one(tmp_path / "png", IMAGE, "a.png", short_side=short_side)
    assert extension == "jpg" and abs(decode(data) - np.asarray(IMAGE)).mean() < 6


@pytest.mark.parametrize("short_side", [64, 500])
def test_exif_orientation_is_applied(tmp_path, short_side):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    _, data = pack_one(tmp_path, IMAGE, "a.jpg", short_side=short_side, exif=exif.tobytes(), quality=95)
    upright = IMAGE.transpose(Image.Transpose.ROTATE_270)
    pixels = decode(data)
    expected = upright.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    assert pixels.shape[0] > pixels.shape[1] and abs(pixels - np.asarray(expected)).mean() < 12
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) == 1


GREY = IMAGE.convert("L")
SIXTEEN_BIT = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
TRANSPARENT = Image.merge("RGBA", [*IMAGE.split(), Image.new("L", IMAGE.size, 0)])
ODD = {
    "grey.jpg": (GREY, GREY.convert("RGB")),
    "grey.png": (GREY, GREY.convert("RGB")),
    "bilevel.png": (IMAGE.convert("1"), IMAGE.convert("1").convert("RGB")),
    "sixteen.png": (SIXTEEN_BIT, GREY.convert("RGB")),
    "sixteen.tif": (SIXTEEN_BIT, GREY.convert("RGB")),
    "cmyk.jpg": (IMAGE.convert("CMYK"), IMAGE),
    "cmyk.tif": (IMAGE.convert("CMYK"), IMAGE),
    "rgba.png": (IMAGE.convert("RGBA"), IMAGE),
    "transparent.png": (TRANSPARENT, Image.new("RGB", IMAGE.size, "white")),
    "transparent.webp": (TRANSPARENT, Image.new("RGB", IMAGE.size, "white")),
    "grey_alpha.png": (GREY.convert("LA"), GREY.convert("RGB")),
    "palette.png": (IMAGE.quantize(64), IMAGE.quantize(64).convert("RGB")),
    "palette.gif": (IMAGE.quantize(64), IMAGE.quantize(64).convert("RGB")),
    "rgb.bmp": (IMAGE, IMAGE),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("short_side", [60, 500])
def test_every_kind_of_image_becomes_an_rgb_jpeg(tmp_path, name, short_side):
    image, expected = ODD[name]
    extension, data = pack_one(tmp_path, image, name, short_side=short_side)
    pixels = decode(data)
    expected = expected.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    assert extension == "jpg" and abs(pixels - np.asarray(expected)).mean() < 10


def test_a_packing_process_does_not_wait_for_torch():
    code = "import sys, sami.packing.reencode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def break_some(source):
    """Two broken files in the folder, of two kinds."""
    whole = save(source / "cat" / "whole.jpg").read_bytes()
    (source / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "dog" / "no image.png").write_bytes(b"nothing of the kind")


@pytest.mark.parametrize("short_side", [None, 64, 500])
def test_broken_images_are_left_out_and_listed(tmp_path, short_side):
    break_some(class_folder(tmp_path / "in"))
    options = {"short_side": short_side, "num_workers": 0, "max_broken_rate": 0.2, "shard_size": 4}
    assert pack_images(tmp_path / "in", tmp_path / "out", **options) == (13, 2)
    assert len(read(tmp_path / "out")) == 13
    with (tmp_path / "out" / "skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {"cat/cut.jpg", "dog/no image.png"}
    assert all(row["reason"] and " at 0x" not in row["reason"] for row in rows)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert pack_images(tmp_path / "in", tmp_path / "out", **options) == (13, 2)
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.tar"))]


def test_too_many_broken_images_stop_the_run_which_goes_on_at_a_higher_rate(tmp_path):
    break_some(class_folder(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"max_broken_rate=0\.01 of the 15 images.*skipped\.csv"):
        pack_images(tmp_path / "in", tmp_path / "out", shard_size=4, num_workers=0)
    assert len((tmp_path / "out" / "skipped.csv").read_text().splitlines()) == 3
    assert pack_images(tmp_path / "in", tmp_path / "out", shard_size=4, num_workers=0, max_broken_rate=1) == (13, 2)
    pack_images(tmp_path / "in", tmp_path / "whole", shard_size=4, num_workers=0, max_broken_rate=1)
    assert tars(tmp_path / "out") == tars(tmp_path / "whole")
    assert (tmp_path / "out" / "skipped.csv").read_text() == (tmp_path / "whole" / "skipped.csv").read_text()


def test_splits_share_a_target_and_its_classes(tmp_path):
    for split in ("train", "val"):
        break_some(class_folder(tmp_path / split))
        pack_images(tmp_path / split, tmp_path / "out", prefix=split, num_workers=0, max_broken_rate=1)
    assert len(read(tmp_path / "out", "train")) == len(read(tmp_path / "out", "val")) == 13
    assert len((tmp_path / "out" / "skipped.csv").read_text().splitlines()) == 5
    save(tmp_path / "test" / "unicorn" / "a.jpg")
    with pytest.raises(ValueError, match="lists other classes"):
        pack_images(tmp_path / "test", tmp_path / "out", prefix="test", num_workers=0)


def test_bad_folders_are_refused(tmp_path):
    source = class_folder(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()

    def refuse(match, given=source, target=tmp_path / "out", **options):
        with pytest.raises(ValueError, match=match):
            pack_images(given, target, num_workers=0, **options)

    refuse("is not a folder", tmp_path / "missing")
    refuse("holds no images", tmp_path / "empty")
    refuse("cannot write into", target=tmp_path / "file" / "out")
    refuse("lies inside", target=source / "out")
    for name, value in {"quality": 0, "short_side": 0, "shard_size": 0, "prefix": "a/b", "max_broken_rate": 2}.items():
        refuse(f"{name}=", **{name: value})
    pack_images(source, tmp_path / "out", num_workers=0)
    refuse(r"quality=90 \(now 80\)", quality=80)
    save(source / "cat" / "new.jpg")
    refuse("sha256_of_image_paths")
    (source / "unicorn").mkdir()
    refuse("without images.*unicorn")
    save(source / "loose.jpg")
    refuse("images beside them, loose.jpg")


def command(*overrides):
    return [sys.executable, "-m", "sami.pack", *overrides]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_a_killed_command_goes_on_to_the_same_shards(tmp_path):
    drawn = [IMAGE.rotate(angle).resize((640, 480)) for angle in range(4)]
    files = [save(tmp_path / f"{i}.png", image, compress_level=1).read_bytes() for i, image in enumerate(drawn)]
    (tmp_path / "in").mkdir()
    for number in range(90):
        (tmp_path / "in" / f"{number}.png").write_bytes(files[number % 4])
    (tmp_path / "in" / "broken.png").write_bytes(files[0][:5000])
    options = {"short_side": 64, "shard_size": 5}
    overrides = [f"source={tmp_path / 'in'}", f"target={tmp_path / 'cut'}", "num_workers=2"]
    overrides += [f"{name}={value}" for name, value in options.items()]
    run = subprocess.Popen(command(*overrides), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list((tmp_path / "cut").glob("*.tar"))) >= 2 or run.poll() is not None)
    workers = children(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    finished = tars(tmp_path / "cut")
    assert 2 <= len(finished) < 19 and len(workers) >= 2
    wait_until(lambda: not any(is_running(worker) for worker in workers), seconds=10)

    assert pack_images(tmp_path / "in", tmp_path / "cut", num_workers=0, **options) == (90, 1)
    pack_images(tmp_path / "in", tmp_path / "whole", num_workers=0, **options)
    assert tars(tmp_path / "cut") == tars(tmp_path / "whole")
    assert (tmp_path / "cut" / "skipped.csv").read_text() == (tmp_path / "whole" / "skipped.csv").read_text()
    assert finished.items() <= tars(tmp_path / "cut").items() and not list((tmp_path / "cut").glob(".*"))


def test_the_command_refuses_a_misspelt_key_and_leaves_nothing_behind(tmp_path):
    overrides = [f"source={tmp_path}", f"target={tmp_path / 'out'}", "shortside=64"]
    run = subprocess.run(command(*overrides), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0 and "shortside" in run.stderr
    assert list(tmp_path.iterdir()) == []
