"""One image file is one picture, whoever reads it."""

import io

import numpy as np
import pytest
import torch
from conftest import draw_image, encode
from masked_images import rle
from PIL import Image

from sami.data.crops import crop_and_resize, resize_and_pad
from sami.data.datasets import Index
from sami.data.decode import FORMATS, IMAGE_EXTENSIONS, BrokenImage, decode_image, image_size, list_images, to_rgb, turn
from sami.data.distillation import ImageWithObjects
from sami.data.finetuning import ExactObjects, SomeMasks
from sami.data.objects import draw_objects
from sami.data.sources.base import AnnotatedImage
from sami.data.sources.images import FolderSource
from sami.data.square import FrameSpec
from sami.packing.reencode import reencode
from sami.predict.image import read_image, rgb_pixels

H, W = 24, 40
ROWS, COLUMNS = np.mgrid[:H, :W]
PIXELS = np.stack([ROWS * 10, COLUMNS * 6, 240 - ROWS * 4 - COLUMNS * 3], axis=2).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
GREY = IMAGE.convert("L")
GREY_PIXELS = np.asarray(GREY)[..., None].repeat(3, axis=2)
CLEAR = np.where(COLUMNS < W // 2, 0, 255).astype(np.uint8)  # left half transparent
ON_WHITE, GREY_ON_WHITE = (np.where(CLEAR[..., None] == 0, 255, pixels) for pixels in (PIXELS, GREY_PIXELS))
UNDO = {  # the stored raster of an upright picture
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "PNG", pixels: np.ndarray = PIXELS, **options) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    stored = Image.fromarray(np.ascontiguousarray(UNDO[orientation](pixels)))
    return saved(stored, kind, exif=exif if kind == "TIFF" else exif.tobytes(), **options)


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def marked_palette() -> tuple[bytes, np.ndarray]:
    picture = Image.fromarray((CLEAR // 255 + 1)[:, :], "P")
    picture.putpalette([9, 9, 9, 10, 20, 30, 40, 50, 60])
    expected = np.where(CLEAR[..., None] == 0, 255, np.array([40, 50, 60]))
    return saved(picture, transparency=1), expected


ALPHA = Image.fromarray(CLEAR)
BITS = IMAGE.convert("1")
WEB = IMAGE.quantize(16)
NEAR = {"quality": 95, "subsampling": 0}
KINDS: dict[str, tuple[bytes, np.ndarray]] = {
    **{f"png turned {number}": (turned(number), PIXELS) for number in UNDO},
    **{f"tiff turned {number}": (turned(number, "TIFF"), PIXELS) for number in UNDO},
    **{f"webp turned {number}": (turned(number, "WEBP", lossless=True), PIXELS) for number in (1, 6)},
    "rgba": (saved(Image.merge("RGBA", (*IMAGE.split(), ALPHA))), ON_WHITE),
    "rgba webp": (saved(Image.merge("RGBA", (*IMAGE.split(), ALPHA)), "WEBP", lossless=True, exact=True), ON_WHITE),
    "rgba tiff": (saved(Image.merge("RGBA", (*IMAGE.split(), ALPHA)), "TIFF"), ON_WHITE),
    "grey alpha": (saved(Image.merge("LA", (GREY, ALPHA))), GREY_ON_WHITE),
    "half": (
        saved(Image.merge("RGBA", (*IMAGE.split(), Image.new("L", (W, H), 51)))),
        (PIXELS * 51.0 + 255 * 204) / 255,
    ),
    "palette": (saved(WEB), np.asarray(WEB.convert("RGB"))),
    "palette with transparency": marked_palette(),
    "colour as transparency": (
        saved(IMAGE, transparency=tuple(PIXELS[3, 5].tolist())),
        np.where((PIXELS[3, 5] == PIXELS).all(2, keepdims=True), 255, PIXELS),
    ),
    "grey": (saved(GREY), GREY_PIXELS),
    "1 bit": (saved(BITS), np.asarray(BITS.convert("RGB"))),
    "16 bit": (saved(Image.fromarray(GREY_PIXELS[..., 0].astype(np.uint16) * 256 + 255)), GREY_PIXELS),
    "16 of 32 bit": (saved(Image.fromarray(GREY_PIXELS[..., 0].astype(np.int32) * 256 + 7), "TIFF"), GREY_PIXELS),
    "bmp": (saved(IMAGE, "BMP"), PIXELS),
    "ppm": (saved(IMAGE, "PPM"), PIXELS),
    "gif": (saved(WEB, "GIF"), np.asarray(WEB.convert("RGB"))),
    "animation": (saved(WEB, "GIF", save_all=True, append_images=[WEB.rotate(180)]), np.asarray(WEB.convert("RGB"))),
    "cmyk tiff": (saved(IMAGE.convert("CMYK"), "TIFF"), PIXELS),
}
LOSSY = {
    **{f"jpeg turned {number}": (turned(number, "JPEG", **NEAR), PIXELS) for number in UNDO},
    "cmyk jpeg": (saved(IMAGE.convert("CMYK"), "JPEG", **NEAR), PIXELS),
    "cmyk jpeg turned": (
        saved(IMAGE.convert("CMYK").transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif_block(6), **NEAR),
        PIXELS,
    ),
    "grey jpeg": (saved(GREY, "JPEG", **NEAR), GREY_PIXELS),
    "two frames": (saved(IMAGE, "MPO", save_all=True, append_images=[IMAGE.rotate(180)], **NEAR), PIXELS),
    "webp": (saved(IMAGE, "WEBP", quality=95), PIXELS),
}


@pytest.mark.parametrize("name", [*KINDS, *LOSSY])
def test_every_reader_sees_the_same_picture(name: str, tmp_path) -> None:
    data, expected = (KINDS | LOSSY)[name]
    pixels = decode_image(data)
    assert pixels.shape == (H, W, 3) == (*image_size(data), 3) and pixels.dtype == np.uint8
    difference = np.abs(pixels - expected.astype(float))
    assert difference.max() <= (name == "half") if name in KINDS else difference.mean() < 4

    (tmp_path / "image.jpg").write_bytes(data)  # what it is called does not matter
    assert (read_image(tmp_path / "image.jpg") == pixels).all()
    for top, left in ((0, 0), (0, W - H)):
        crop = crop_and_resize(data, (top, left, H, H), H)
        assert (crop.permute(1, 2, 0).numpy() == pixels[top : top + H, left : left + H]).all()
    assert (resize_and_pad(data, W)[:, :H].permute(1, 2, 0).numpy() == pixels).all()
    extension, copy = reencode(data, short_side=None, quality=95)
    assert copy == data and extension in IMAGE_EXTENSIONS
    packed = decode_image(reencode(data, short_side=500, quality=95)[1])
    assert packed.shape == (H, W, 3) and np.abs(packed.astype(float) - pixels).mean() < 12


def test_what_was_three_pictures() -> None:
    clear = saved(Image.new("RGBA", (8, 8), (10, 20, 30, 0)))
    assert (decode_image(clear) == 255).all()
    assert (decode_image(saved(Image.new("LA", (8, 8), (50, 0)))) == 255).all()
    with Image.open(io.BytesIO(clear)) as picture:
        assert (rgb_pixels(picture) == 255).all() and (rgb_pixels(np.asarray(picture)) == 255).all()


@pytest.mark.parametrize("orientation", UNDO)
def test_the_stored_raster_is_to_be_had(orientation: int) -> None:
    for kind in ("PNG", "JPEG"):
        data = turned(orientation, kind)
        stored = decode_image(data, upright=False)
        assert stored.shape[:2] == image_size(data, upright=False) == ((W, H) if orientation >= 5 else (H, W))
        assert np.abs(stored - UNDO[orientation](PIXELS).astype(float)).mean() < 6
        assert (turn(stored, orientation) == decode_image(data)).all()


@pytest.mark.parametrize("orientation", (1, 6, 7))
def test_scaled_decoding_of_a_turned_image_keeps_the_frame(orientation: int) -> None:
    """To a pixel of the smaller picture: the decoder rounds its sides up, and a turn brings the rest to the front."""
    image = draw_image(1, height=901, width=1203, grain=150)
    box = (200, 301, 650, 640)
    found = crop_and_resize(turned(orientation, "JPEG", image, quality=95), box, 64)
    assert decode_image(turned(orientation, "JPEG", image), min_scale=0.2).shape == (226, 301, 3)
    window = Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC, box=(301, 200, 941, 850))
    assert np.abs(found.permute(1, 2, 0).numpy() - np.asarray(window).astype(float)).mean() < 6


def test_odd_orientations_count_as_upright() -> None:
    whole = turned(6, "JPEG")
    begin = whole.index(b"Exif\0\0")
    for block in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", whole[begin : begin + 20], exif_block(9)):
        data = saved(IMAGE, "JPEG", exif=block)
        assert image_size(data) == (H, W) and decode_image(data).shape == (H, W, 3)
    comment = b"\xff\xfe\0\x20" + exif_block(3)[:30]  # looks like one, and is none
    behind = saved(IMAGE, "JPEG", exif=exif_block(6))
    assert image_size(behind[:2] + comment + behind[2:]) == (W, H)


def test_pixels_without_a_range_are_refused() -> None:
    for grey in (np.zeros((4, 4), np.float32), np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32)):
        data = saved(Image.fromarray(grey), "TIFF")
        assert image_size(data) == (4, 4)
        for read in (decode_image, lambda data: reencode(data, short_side=None, quality=90)):
            with pytest.raises(BrokenImage, match="no known range: convert the image to 8 or 16 bits"):
                read(data)


@pytest.mark.parametrize(
    "data", [b"", b"not an image at all", b"\xff\xd8", encode(draw_image(4))[:600], encode(draw_image(4), "PNG")[:400]]
)
def test_broken_bytes_are_named_as_such(data: bytes) -> None:
    with pytest.raises(BrokenImage, match=r"Error|cannot|truncated"):
        decode_image(data)


def test_everything_that_can_be_packed_can_be_trained_on(tmp_path) -> None:
    for kind, extensions in FORMATS.items():
        for extension in extensions:
            (tmp_path / f"image.{extension.upper()}").write_bytes(saved(IMAGE, kind))
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    assert len(list_images(tmp_path)) == len(IMAGE_EXTENSIONS) == FolderSource(str(tmp_path)).counts[0]
    for name in list_images(tmp_path):
        data = (tmp_path / name).read_bytes()
        assert reencode(data, short_side=None, quality=90)[0] in IMAGE_EXTENSIONS
        assert decode_image(data).shape == (H, W, 3)


def test_a_picture_of_pillow_is_not_turned() -> None:
    with Image.open(io.BytesIO(turned(6))) as picture:
        assert to_rgb(picture).size == (H, W) and rgb_pixels(picture).shape == (W, H, 3)


BRIGHT = np.zeros((H, W), dtype=bool)
BRIGHT[4:12, 6:16] = True
SCENE = np.where(BRIGHT[..., None], 250, 20).astype(np.uint8).repeat(3, axis=2)
OUTLINE = [[6, 4, 16, 4, 16, 12, 6, 12]]  # of the object, upright
STORED_OUTLINE = [[4, W - 16, 12, W - 16, 12, W - 6, 4, W - 6]]  # the same before a turn of 90 degrees


@pytest.mark.parametrize(
    ("segmentation", "stated", "upright"),
    [
        (rle(BRIGHT), None, True),
        (rle(np.ascontiguousarray(np.rot90(BRIGHT))), None, False),
        (OUTLINE, None, True),
        (OUTLINE, (H, W), True),
        (STORED_OUTLINE, (W, H), False),
        (rle(np.ascontiguousarray(np.rot90(BRIGHT))), (W, H), False),
    ],
)
def test_masks_lie_on_their_objects_before_and_after_a_turn(segmentation, stated, upright) -> None:
    image = AnnotatedImage(turned(6, pixels=SCENE), [segmentation], stated)
    assert image.raster() == ((H, W) if upright else (W, H), upright)
    view = SomeMasks(FrameSpec(W, W, "pad", 0.9), 1, flip=0.0)(image, np.random.default_rng(0), Index(0, 0, 0))
    (mask,) = view["masks"]
    assert torch.equal(mask, view["image"][0] > 128) and mask.sum() == BRIGHT.sum()
    objects = draw_objects(image, FrameSpec(W, W, "pad", 0.9), np.random.default_rng(0), num_masks=1)
    pixels = decode_image(image.image, upright=objects.upright)
    assert (objects.take(slice(0, 1), objects.frame)[0][0, 0].numpy() == (pixels[..., 0] > 128)).all()


def test_masks_that_cannot_lie_on_their_objects_are_refused() -> None:
    """Label Studio shows an image upright, and states the size that it is stored with."""
    far = [[30, 4, 39, 4, 39, 12]]  # beyond the stored raster, which is 24 wide
    with pytest.raises(BrokenImage, match=r"masks are for 40x24 pixels, and it has 24x40 \(EXIF turns it: save it"):
        AnnotatedImage(turned(6), [far], (W, H)).raster()
    with pytest.raises(BrokenImage, match="made smaller"):
        AnnotatedImage(turned(1), [far], (W, H)).raster()


def test_validation_shows_an_image_as_its_masks_were_drawn() -> None:
    spec, rng = FrameSpec(W, W, "pad", 1.0), np.random.default_rng(0)
    image = AnnotatedImage(turned(6, pixels=SCENE), [STORED_OUTLINE], (W, H))  # drawn before EXIF turned it
    for make in (ExactObjects(spec, 1), ImageWithObjects(spec, None, 1)):
        row = make(image, rng, Index(0, 0, 0))
        assert row["input_size"].tolist() == [W, H]
        assert (row["image"][0, :, :H].numpy() == np.rot90(SCENE[..., 0])).all()
    with pytest.raises(BrokenImage, match="its map for the upright one"):
        ImageWithObjects(spec, object(), 1)(image, rng, Index(0, 0, 0))
