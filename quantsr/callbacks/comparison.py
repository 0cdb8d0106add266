"""Comparison sheets: the same picture as every model sees it, side by side and labelled."""

from collections.abc import Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

GAP = 10  # pixels between cells and around the sheet
MIN_WIDTH = 224  # smaller pictures are enlarged by a whole factor to at least this width
FONT_SIZE = 18
BLACK, GRAY, WHITE = (20, 20, 20), (95, 95, 95), (255, 255, 255)


def comparison_sheet(
    rows: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    notes: Sequence[dict[str, str]] | None = None,
) -> Image.Image:
    """A grid with a row for each picture and a column for each version of it.

    Smaller versions (the low-quality input) are enlarged to the row's largest without interpolation, so that
    their pixels show.

    Args:
        rows: for each picture its versions by caption, ``(3, h, w)`` in [0, 1]; every row has the same
            captions, which are the columns in their order.
        names: what stands above each row.
        notes: for each row a short text under some versions, for example ``{"student": "26.31 dB"}``.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: no rows, or rows, names and notes that do not match.
    """
    notes = notes if notes is not None else [{} for _ in rows]
    if not rows or not len(rows) == len(names) == len(notes):
        raise ValueError(f"{len(rows)} rows, {len(names)} names and {len(notes)} notes do not make a sheet")
    captions = list(rows[0])
    if any(list(row) != captions for row in rows):
        raise ValueError(f"every row needs the versions of the first: {', '.join(captions)}")
    font = ImageFont.load_default(FONT_SIZE)
    line = round(FONT_SIZE * 1.4)
    pictures = [equal_size(list(row.values())) for row in rows]
    widths = column_widths(pictures, captions, notes, font)
    heights = [line + row[0].height + (line if note else 0) + GAP for row, note in zip(pictures, notes, strict=True)]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + line + 2 * GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, caption in zip(lefts, captions, strict=True):
        draw.text((left, GAP), caption, BLACK, font)
    top = GAP + line
    for row, name, note, height in zip(pictures, names, notes, heights, strict=True):
        draw.text((GAP, top), name, GRAY, font)
        for left, caption, picture in zip(lefts, captions, row, strict=True):
            sheet.paste(picture, (left, top + line))
            draw.text((left, top + line + picture.height + 2), note.get(caption, ""), BLACK, font)
        top += height
    return sheet


def equal_size(versions: Sequence[Tensor]) -> list[Image.Image]:
    """The versions of one picture, ``(3, h, w)`` in [0, 1], enlarged to one size by repeating pixels."""
    height = max(version.shape[-2] for version in versions)
    width = max(version.shape[-1] for version in versions)
    factor = ceil(MIN_WIDTH / width)
    size = (width * factor, height * factor)
    images = (to_pil_image(version.detach().float().clamp(0, 1).mul(255).round().byte().cpu()) for version in versions)
    return [image.resize(size, Image.Resampling.NEAREST) for image in images]


def column_widths(
    pictures: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    notes: Sequence[dict[str, str]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> list[int]:
    """Each column's width in pixels: its widest picture, caption or note."""
    widths = []
    for column, caption in enumerate(captions):
        texts = [caption, *(note.get(caption, "") for note in notes)]
        widest_text = max(round(font.getlength(text)) for text in texts)
        widths.append(max(widest_text, *(row[column].width for row in pictures)))
    return widths
