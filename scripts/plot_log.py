#!/usr/bin/env python3
"""Draw the loss curves of a training run: its log.jsonl to an SVG.

    python scripts/plot_log.py runs/mini loss.svg

Thin: the training loss of each logged interval. Thick: the same, smoothed. Dots: the validation loss, of the averaged
weights at fixed noise levels, which is another mean than the training loss: compare each with itself. The loss axis is
logarithmic.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_sr.atomic_files import atomic_file

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 56, 16, 28, 44
SMOOTHING = 0.1  # share of a new value in the smoothed curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, or its log.jsonl")
    parser.add_argument("svg", type=Path, metavar="SVG", help="picture to write")
    arguments = parser.parse_args()
    log = arguments.run / "log.jsonl" if arguments.run.is_dir() else arguments.run
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        parser.error(f"{log}: {error.strerror}; name the folder of a training run (--save)")
    curves, damaged = read(lines)
    if damaged:
        print(
            f"{log}: {damaged} line(s) left out, which are damaged or have no loss that can be drawn", file=sys.stderr
        )
    if len(curves["train"]) < 2:
        parser.error(f"{log} has {len(curves['train'])} logged intervals: two are needed for a curve")
    try:
        with atomic_file(arguments.svg) as temporary:
            temporary.write_text(draw(curves["train"], curves["valid"]), encoding="utf-8")
    except OSError as error:
        parser.error(str(error))


def read(lines: list[str]) -> tuple[dict[str, list[tuple[int, float]]], int]:
    """The curves "train" and "valid" of (step, loss), and how many lines are in neither though they should be."""
    curves, damaged = {"train": [], "valid": []}, 0
    for line in lines:
        if not line.endswith("\n"):  # the last one, about to be written
            continue
        try:
            record = json.loads(line)
            if record["kind"] not in curves:
                continue
            step, loss = int(record["step"]), float(record["loss"])
        except (ValueError, KeyError, TypeError):
            damaged += 1
            continue
        if 0 < loss < math.inf:  # the axis is logarithmic
            curves[record["kind"]].append((step, loss))
        else:
            damaged += 1
    return curves, damaged


def draw(train: list[tuple[int, float]], valid: list[tuple[int, float]]) -> str:
    """The SVG of two curves of (step, loss)."""
    losses = [loss for _, loss in train + valid]
    low, high = math.log10(min(losses)) - 0.03, math.log10(max(losses)) + 0.03
    last = max(step for step, _ in train + valid)

    def x(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - math.log10(loss)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(points: list[tuple[int, float]], color: str, width: float) -> str:
        coordinates = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
        return f'<polyline points="{coordinates}" fill="none" stroke="{color}" stroke-width="{width}"/>'

    smooth, value = [], train[0][1]
    for step, loss in train:
        value += SMOOTHING * (loss - value)
        smooth.append((step, value))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for loss in _ticks(low, high):
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>',
        ]
    for step in _steps(last):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:,}</text>')
    parts += [
        path(train, "#b8cbe6", 1),
        path(smooth, "#1f5fb4", 2),
        *(f'<circle cx="{x(step):.1f}" cy="{y(loss):.1f}" r="3.5" fill="#d9541e"/>' for step, loss in valid),
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>',
        f'<text x="{LEFT}" y="16"><tspan fill="#1f5fb4">training loss</tspan>'
        + ('  ·  <tspan fill="#d9541e">validation loss of the averaged weights</tspan>' if valid else "")
        + "</text></svg>",
    ]
    return "\n".join(parts) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten between 10^low and 10^high."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    return [v for decade in decades for m in (1, 2, 5) if low <= math.log10(v := m * 10.0**decade) <= high]


def _steps(last: int) -> list[int]:
    """About five round steps from 0 to the last."""
    size = 10 ** math.floor(math.log10(last / 4)) if last >= 4 else 1
    size *= next(m for m in (1, 2, 5, 10) if last / (size * m) <= 6)
    return list(range(0, last + 1, int(size)))


if __name__ == "__main__":
    main()
