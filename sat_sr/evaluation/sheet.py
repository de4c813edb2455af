"""Sheets of pictures side by side: input, bicubic, every run, target; and where a run is worst, enlarged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from sat_sr.evaluation.artefacts import flat_mask, high_frequencies
from sat_sr.evaluation.columns import GRIDS, METRICS, describe, format_figure, metric_of
from sat_sr.evaluation.metrics import luma
from sat_sr.evaluation.pairs import Pair
from sat_sr.evaluation.runner import BICUBIC, TARGET, Evaluation, Run

MARGIN, CAPTION = 6, 18  # pixels
WINDOW, ENLARGE = 128, 4  # the part of a tile that is enlarged, and how many times


def nearest(lr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The input as it is: (h, w, 3) uint8 to (H, W)."""
    return np.asarray(Image.fromarray(lr).resize((size[1], size[0]), Image.Resampling.NEAREST))


def centre(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, at most side × side."""
    top, left = (max(0, length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def picture_sheet(evaluation: Evaluation, runs: Sequence[Run], names: Sequence[str], side: int = 512) -> np.ndarray:
    """A row a picture: input (nearest), bicubic, the runs, target; the middle side × side pixels of each, 1:1."""
    rows = []
    for name in names:
        pair = evaluation.pairs.read(name)
        row = _row(evaluation, [BICUBIC, *runs, TARGET], pair, lambda picture: centre(picture, side), None)
        rows.append((name, row))
    return _compose(rows)


def worst(evaluation: Evaluation, run: Run, column: str, count: int = 3) -> list[str]:
    """Names of the pictures with the worst figure of a column, the worst first; those without the figure never."""
    figures = {n: evaluation.result(run, n)["figures"].get(column) for n in evaluation.pairs.names}
    sign = -1 if METRICS[metric_of(column)[0]].better == "high" else 1
    present = [name for name, value in figures.items() if value is not None]
    return sorted(present, key=lambda name: -sign * figures[name])[:count]


def worst_sheet(evaluation: Evaluation, run: Run, column: str, count: int = 3) -> np.ndarray | None:
    """The worst pictures of a run by one figure, where its fine structure differs most from the target's.

    A window of WINDOW pixels a side, enlarged ENLARGE times without smoothing. For flat_energy the window is chosen by
    the flat areas alone. None where no picture has the figure.
    """
    rows = []
    for name in worst(evaluation, run, column, count):
        pair = evaluation.pairs.read(name)
        top, left = _worst_place(pair, evaluation.picture(run, pair), flat_only=column == "flat_energy")

        def cut(picture: np.ndarray, top: int = top, left: int = left) -> np.ndarray:
            return picture[top : top + WINDOW, left : left + WINDOW].repeat(ENLARGE, 0).repeat(ENLARGE, 1)

        rows.append((f"{name}  x {left}  y {top}", _row(evaluation, [BICUBIC, run, TARGET], pair, cut, column)))
    return _compose(rows) if rows else None


def _row(
    evaluation: Evaluation, runs: Sequence[Run], pair: Pair, cut: Callable[[np.ndarray], np.ndarray], column: str | None
) -> list[tuple[str, np.ndarray]]:
    """(caption, cell) of the input and each run; the caption has the figures of `column`, or one for perception.

    Figures of a grid stand at the network's cell alone, with the target's at the same lines.
    """
    cells = [("input", cut(nearest(pair.lr, pair.target.shape[:2])))]
    for run in runs:
        result = evaluation.result(run, pair.name)
        figures, target = result["figures"], result.get("target", {})
        shown = [column] if column else [c for c in ("psnr_y", "stlpips") if c in figures]
        shown = [c for c in shown if c in figures and (c in target or not c.startswith(GRIDS))]
        texts = [
            describe(c, figures[c]) + (f" (target {format_figure(c, target[c])})" if c in target else "") for c in shown
        ]
        cells.append(("  ".join([run.title, *texts]), cut(evaluation.picture(run, pair))))
    return cells


def _worst_place(pair: Pair, picture: np.ndarray, *, flat_only: bool) -> tuple[int, int]:
    """(top, left) of the window where the high frequencies of picture and target differ most."""
    target_y = luma(pair.target)
    error = (high_frequencies(luma(picture)) - high_frequencies(target_y)) ** 2
    if flat_only:
        error = error * flat_mask(target_y)
    height, width = error.shape
    sides = min(WINDOW, height), min(WINDOW, width)
    # uniform_filter puts the mean of a window at its centre: only centres whose window lies inside can be chosen.
    mean = uniform_filter(error, sides)[
        sides[0] // 2 : height - (sides[0] - 1) // 2, sides[1] // 2 : width - (sides[1] - 1) // 2
    ]
    return tuple(int(i) for i in np.unravel_index(np.argmax(mean), mean.shape))


def _compose(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]) -> np.ndarray:
    """Rows of (caption, cell) under their headings, on white."""
    widths = [max(row[i][1].shape[1] for _, row in rows) for i in range(len(rows[0][1]))]
    heights = [max(cell.shape[0] for _, cell in row) for _, row in rows]
    sheet = Image.new(
        "RGB",
        (MARGIN + sum(width + MARGIN for width in widths), MARGIN + sum(h + 2 * CAPTION + MARGIN for h in heights)),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    top = MARGIN
    for (heading, row), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top), heading, fill="black", font=font)
        left = MARGIN
        for (caption, cell), width in zip(row, widths, strict=True):
            draw.text((left, top + CAPTION), _shorten(caption, width, font), fill="black", font=font)
            sheet.paste(Image.fromarray(np.ascontiguousarray(cell)), (left, top + 2 * CAPTION))
            left += width + MARGIN
        top += height + 2 * CAPTION + MARGIN
    return np.asarray(sheet)


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """As much as fits, as columns are close together; the end is kept, because settings differ there."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
