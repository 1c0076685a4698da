"""Cuts out the objects of an image that points and boxes show.

    python -m sami.segment image.jpg --point 320,240 --checkpoint sam_vit_b_01ec64.pth --model sam_vit_b
    python -m sami.segment image.jpg --point 320,240 --point 100,80,0 --box 50,40,400,380 \\
        --checkpoint runs/finetune_vit_s/segmenter.safetensors --output masks.png --masks masks/ --rle masks.json
    python -m sami.segment image.jpg --box 50,40,90,80 --box 200,10,240,60 --zoom --checkpoint efficient_sam_vits.pt \\
        --model efficient_sam_vits

Points are x,y for "this belongs to it", x,y,0 for "this does not", in pixels from the top left corner. All points and
a box describe one object; several boxes, without points, one object each. With --zoom each box is looked at by itself,
in a window of the image twice as large: better where objects are small.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sami.cli import choose_device, explain_errors
from sami.models.build import MODELS, build_sam, read_description
from sami.models.sam import Sam
from sami.ops.cpu_kernels import keep_freed_memory
from sami.ops.prompts import BACKGROUND, FOREGROUND, use_multimask
from sami.ops.rle import counts_to_string, mask_to_rle
from sami.predict.image import read_image
from sami.predict.overlay import draw_masks
from sami.predict.predictor import SamPredictor
from sami.predict.zoom import predict_zoomed


def main(arguments: list[str] | None = None) -> None:
    """`segment` with the options of a command line."""
    with explain_errors():
        segment(parse(arguments))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m sami.segment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="an image file")
    parser.add_argument("--point", action="append", default=[], metavar="X,Y[,0]", help="may be given several times")
    parser.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="may be given several times")
    parser.add_argument("--zoom", action="store_true", help="look at each box by itself, magnified: slower, sharper")
    parser.add_argument("--checkpoint", required=True, help="a released file, or one of a fine-tuning run")
    parser.add_argument("--model", choices=MODELS, help="needed for released files, which do not say what they are")
    parser.add_argument("--image-size", type=int, help="of a released file: pixels per side that the model sees (1024)")
    parser.add_argument("--output", default="masks.png", help="the image with the masks on it (masks.png)")
    parser.add_argument("--masks", metavar="FOLDER", help="also write each mask as a black and white PNG")
    parser.add_argument("--rle", metavar="FILE", help="also write the masks as JSON, in COCO's run-length code")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


def segment(options: argparse.Namespace) -> None:
    """Reads, predicts, prints and writes; ValueError before anything is written where that cannot be done."""
    points, labels = read_points(options.point)
    boxes = [read_numbers(box, "--box", (4,)) for box in options.box]
    if not points and not boxes:
        raise ValueError("nothing to look for: give --point x,y or --box x0,y0,x1,y1")
    if points and len(boxes) > 1:
        raise ValueError("points and several boxes: give one box with the points, or the boxes alone")
    if options.zoom and (points or not boxes):
        raise ValueError("--zoom looks closer at boxes: give --box x0,y0,x1,y1, without points")
    image = read_image(options.image)
    check_outputs(options)
    sam = load_model(options)
    keep_freed_memory()
    sam = sam.to(choose_device(options.device))
    multimask = use_multimask(sam.decoder, num_clicks=len(points), has_box=bool(boxes))
    if options.zoom:
        answers = zip(*predict_zoomed(sam, image, boxes, multimask_output=multimask), strict=True)
    else:
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        prompts = (
            {"point_coords": points or None, "point_labels": labels or None, "box": box} for box in boxes or [None]
        )
        answers = (predictor.predict(**prompt, multimask_output=multimask)[:2] for prompt in prompts)
    masks, ious = [], []
    for number, (candidates, iou_predictions) in enumerate(answers):
        best = int(iou_predictions.argmax())
        masks.append(candidates[best])
        ious.append(float(iou_predictions[best]))
        print(f"object {number}: predicted IoU {ious[-1]:.3f}, {masks[-1].mean():.1%} of the image")
    drawn = draw_masks(image, np.stack(masks), point_coords=points, point_labels=labels, boxes=boxes)
    write_results(options, drawn, masks, ious)
    print("written:", ", ".join(filter(None, (options.output, options.masks, options.rle))))


def load_model(options: argparse.Namespace) -> Sam:
    """What `--checkpoint` and `--model` name; ValueError also where the file does not say which model it is."""
    try:
        return build_sam(options.model, options.checkpoint, image_size=options.image_size)
    except ValueError as error:
        unnamed = options.model is None and Path(options.checkpoint).is_file()
        if not unnamed or read_description(options.checkpoint):
            raise
        raise ValueError(f"{error}. Released files need --model, one of {', '.join(MODELS)}") from error


def write_results(options: argparse.Namespace, drawn: Image.Image, masks: list[np.ndarray], ious: list[float]) -> None:
    """The image with the masks on it, and what else was asked for."""
    save_image(drawn, options.output)
    if options.masks:
        for number, mask in enumerate(masks):
            save_image(Image.fromarray(mask), Path(options.masks) / f"object_{number}.png")
    if options.rle:
        records = []
        for mask, iou in zip(masks, ious, strict=True):  # as pycocotools reads it
            counts = counts_to_string(mask_to_rle(torch.from_numpy(mask))).decode()
            code = {"size": list(mask.shape), "counts": counts}
            records.append({"segmentation": code, "area": int(mask.sum()), "predicted_iou": iou})
        Path(options.rle).parent.mkdir(parents=True, exist_ok=True)
        Path(options.rle).write_text(json.dumps(records))


def check_outputs(options: argparse.Namespace) -> None:
    """ValueError before the work is done where its results could not be written."""
    if Image.registered_extensions().get(Path(options.output).suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--output {options.output}: give a name that ends in .png or .jpg")
    for option, path in (("output", options.output), ("rle", options.rle), ("masks", options.masks)):
        if not path:
            continue
        if option != "masks" and Path(path).is_dir():
            raise ValueError(f"--{option} {path} is a folder: give a file's name")
        folder = Path(path).absolute() if option == "masks" else Path(path).absolute().parent
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ValueError(f"--{option} {path}: {nearest} is no folder that can be written to")


def save_image(image: Image.Image, path: str | Path) -> None:
    """Save in the format of the name and make the folders; ValueError where that fails, as on a full disk."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        image.save(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def read_points(texts: list[str]) -> tuple[list[list[float]], list[int]]:
    """x,y or x,y,label -> [[x, y], ...] and labels; ValueError for anything else."""
    numbers = [read_numbers(text, "--point", (2, 3)) for text in texts]
    for text, point in zip(texts, numbers, strict=True):
        if len(point) == 3 and point[2] not in (FOREGROUND, BACKGROUND):
            raise ValueError(f"--point {text}: the third number is 1 for a point inside and 0 for one outside")
    return [point[:2] for point in numbers], [int(point[2]) if len(point) == 3 else FOREGROUND for point in numbers]


def read_numbers(text: str, option: str, counts: tuple[int, ...]) -> list[float]:
    """Numbers between commas; ValueError for anything else, or another count."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise ValueError(f"{option} {text}: give {' or '.join(map(str, counts))} numbers with commas between")
    return numbers


if __name__ == "__main__":
    main()
