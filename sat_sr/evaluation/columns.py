"""How figures are named, written and judged: the columns of tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a figure is to be read.

    title      its name in tables
    unit       "dB" or ""
    decimals   digits that mean something
    better     "high", "low", or "one" (a ratio that should be 1)
    baseline   how it is set against bicubic: "difference", "percent" or None
    """

    title: str
    unit: str
    decimals: int
    better: str
    baseline: str | None = None


METRICS = {
    "psnr_y": Metric("PSNR(Y)", "dB", 2, "high", "difference"),
    "ssim_y": Metric("SSIM(Y)", "", 4, "high"),
    "psnr_rgb": Metric("PSNR(RGB)", "dB", 2, "high"),
    "ssim_rgb": Metric("SSIM(RGB)", "", 4, "high"),
    "stlpips": Metric("ST-LPIPS", "", 4, "low", "percent"),
    "lpips": Metric("LPIPS", "", 4, "low", "percent"),
    "consistency": Metric("consistency", "dB", 2, "high"),
    "patch_grid": Metric("patch grid", "", 3, "one"),
    "block_grid": Metric("block grid", "", 3, "one"),
    "block_lines": Metric("block lines", "", 3, "one"),
    "flat_energy": Metric("flat energy", "", 3, "one"),
}
# One column for every size of patch or block that is compared. A grid's lines are set against everything else, those
# of block_lines against lines at the same place in a patch: the input's pixels, and patches, do not count as blocks.
GRIDS = ("patch_grid", "block_grid", "block_lines")


def metric_of(column: str) -> tuple[str, tuple[int, ...]]:
    """The metric of a column of `Metrics.columns`, and the sizes of its grid, in pixels.

    "psnr_y" -> ("psnr_y", ()); "block_grid_32" -> ("block_grid", (32,)); "block_lines_32x4" -> ("block_lines",
    (32, 4)): blocks of 32 pixels, compared with lines at the same place in patches of 4.
    """
    if column in METRICS:
        return column, ()
    name, _, sizes = column.rpartition("_")
    return name, tuple(map(int, sizes.split("x")))


def title_of(column: str) -> str:
    """In words: "PSNR(Y)", "block grid 32 px"."""
    name, sizes = metric_of(column)
    return METRICS[name].title + (f" {sizes[0]} px" if sizes else "")


def heading_of(column: str) -> str:
    """Title and unit: "PSNR(Y) dB"."""
    return f"{title_of(column)} {METRICS[metric_of(column)[0]].unit}".rstrip()


def describe(column: str, value: float | None) -> str:
    """A figure in words: "PSNR(Y) 24.45 dB"."""
    return f"{title_of(column)} {format_figure(column, value)} {METRICS[metric_of(column)[0]].unit}".rstrip()


def format_figure(column: str, value: float | None) -> str:
    """With the decimals that mean something; an en dash where there is none."""
    return "–" if value is None else f"{value:.{METRICS[metric_of(column)[0]].decimals}f}"


def parse_bars(texts: Iterable[str], names: Iterable[str]) -> dict[str, float]:
    """ "patch_grid=1.15" -> {"patch_grid": 1.15}: what a figure may be at most, for figures where less is better.

    names   of the metrics that are computed
    Raises ValueError for text of another form, and for a metric that is not computed or where more is better.
    """
    known = [name for name in names if METRICS[name].better != "high"]
    bars = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            bars[name] = float(value)
        except ValueError:
            raise ValueError(f"bar {text!r}: not of the form NAME=NUMBER") from None
        if name not in known:
            raise ValueError(f"bar {text!r}: can be set for {', '.join(known) or 'none of the metrics computed'}")
    return bars
