"""Tables of an evaluation: means and single pictures, as Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sat_sr.evaluation.columns import METRICS, format_figure, heading_of, metric_of, title_of
from sat_sr.evaluation.runner import BICUBIC, TARGET, Evaluation, Run
from sat_sr.image_io.storage import atomic_write
from sat_sr.sampling import SamplingSettings

COSTS = {"calls": ("calls", 0), "seconds": ("seconds", 1), "peak_mib": ("peak MiB", 0)}
TO_CONVERGED = {"to_converged": ("to converged dB", 2)}


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def summarize(evaluation: Evaluation, run: Run) -> dict:
    """Means of a run: every figure over the pictures that have it; calls and seconds; the largest peak.

    For networks "target" has those of the target's grids, at the offsets of the run's own.
    """
    results = [evaluation.result(run, name) for name in evaluation.pairs.names]
    summary = {c: mean_of([r["figures"][c] for r in results]) for c in evaluation.columns(run)}
    if run.network:
        summary |= {key: mean_of([r[key] for r in results]) for key in ("calls", "seconds")}
        summary["peak_mib"] = max(r["peak_mib"] for r in results)
        summary["target"] = {c: mean_of([r["target"][c] for r in results]) for c in results[0]["target"]}
    if run.key in evaluation.to_converged:
        summary["to_converged"] = evaluation.to_converged[run.key]
    return summary


def mean_table(evaluation: Evaluation, runs: Sequence[Run], *, brief: bool = False) -> str:
    """Markdown: a row a run, with its sampling settings, costs, and figures set against bicubic's.

    brief   the run's title in place of the network and all settings; of the costs the calls alone, which depend on no
            machine
    """
    settings = [settings_of(evaluation, run) for run in runs]
    keys = [] if brief else shown_settings([s for s in settings if s])
    columns = evaluation.metrics.columns
    costs = {key: cost for key, cost in COSTS.items() if key == "calls" or not brief}
    extras = costs | (TO_CONVERGED if evaluation.to_converged else {})
    bicubic = summarize(evaluation, BICUBIC)
    rows = []
    for run, setting in zip(runs, settings, strict=True):
        if not evaluation.columns(run):
            continue  # the target, where no grid is looked for
        summary = summarize(evaluation, run)
        rows.append(
            [
                run.title if brief else run.network or run.title,
                *(str(setting.get(key, "")) for key in keys),
                *(f"{summary[key]:.{digits}f}" if key in summary else "" for key, (_, digits) in extras.items()),
                *(_cell(column, summary, None if run in (BICUBIC, TARGET) else bicubic) for column in columns),
            ]
        )
    return markdown(["", *keys, *(title for title, _ in extras.values()), *map(heading_of, columns)], rows)


def settings_of(evaluation: Evaluation, run: Run) -> dict:
    """What a run sampled with, the checkpoint's defaults included; {} for interpolation."""
    if not run.network:
        return {}
    return {**evaluation.result(run, evaluation.pairs.names[0])["settings"], "seed": run.setting.get("seed", 0)}


def shown_settings(settings: Sequence[dict]) -> list[str]:
    """Sampler, steps and first noise level always; the rest where a run leaves the release's value."""
    usual = {**SamplingSettings().to_dict(), "seed": 0}
    always = ("sampler", "num_steps", "sigma_max")
    return [key for key in usual if settings and (key in always or any(s[key] != usual[key] for s in settings))]


def picture_table(evaluation: Evaluation, run: Run) -> str:
    """Markdown: a row a picture of one run."""
    columns = evaluation.columns(run)
    costs = COSTS if run.network else {}
    rows = []
    for name in evaluation.pairs.names:
        result = evaluation.result(run, name)
        rows.append(
            [
                name,
                *(f"{result[key]:.{digits}f}" for key, (_, digits) in costs.items()),
                *(format_figure(column, result["figures"][column]) for column in columns),
            ]
        )
    return markdown(["picture", *(title for title, _ in costs.values()), *map(heading_of, columns)], rows)


def bar_table(evaluation: Evaluation, runs: Sequence[Run], bars: Mapping[str, float]) -> str:
    """Markdown: in how many pictures a figure is at or under its bar, and the largest of all; "" without bars.

    bars   by metric; it holds for all of its columns
    """
    columns = [column for column in evaluation.metrics.columns if metric_of(column)[0] in bars]
    rows = []
    for run in runs:
        cells = []
        for column in columns:
            values = [evaluation.result(run, n)["figures"].get(column) for n in evaluation.pairs.names]
            values = [value for value in values if value is not None]
            kept = sum(value <= bars[metric_of(column)[0]] for value in values)
            largest = f"; most {format_figure(column, max(values))}" if values else ""
            cells.append(f"{kept} of {len(values)}{largest}")
        rows.append([run.title, *cells])
    headings = [f"{title_of(column)} ≤ {bars[metric_of(column)[0]]:g}" for column in columns]
    return markdown(["", *headings], rows) if columns else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns of equal width, so that it can be read as text too; numbers are aligned to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        lines.append(f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])} |")
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def write_report(
    evaluation: Evaluation, runs: Sequence[Run], facts: dict, folder: Path, bars: Mapping[str, float] | None = None
) -> list[Path]:
    """report.json and report.md with everything: `facts` (plain values that head it), means, and every picture.

    bars   of `bar_table`, in report.md alone
    """
    content = {
        **facts,
        "pictures": evaluation.pairs.names,
        "skipped": evaluation.pairs.skipped,
        "runs": [
            {
                "title": run.title,
                "network": run.network,
                "setting": run.setting,
                "mean": summarize(evaluation, run),
                "pictures": {name: evaluation.result(run, name) for name in evaluation.pairs.names},
            }
            for run in runs
        ],
    }
    text = ["# Evaluation", "", *(f"* {key}: {_plain(value)}" for key, value in facts.items())]
    text += [f"* skipped: {name} ({reason})" for name, reason in evaluation.pairs.skipped.items()]
    text += ["", "## Means", "", mean_table(evaluation, runs), "", LEGEND]
    if table := bar_table(evaluation, runs, bars or {}):
        text += ["", "## Pictures that keep the bars", "", table]
    for run in runs:
        text += ["", f"## {run.title}", "", picture_table(evaluation, run)] if evaluation.columns(run) else []
    paths = [folder / "report.json", folder / "report.md"]
    for path, lines in zip(paths, ([json.dumps(content, indent=1, allow_nan=False)], text), strict=True):
        with atomic_write(path) as file:
            # Names of files need not be UTF-8.
            file.write("\n".join([*lines, ""]).encode(errors="backslashreplace"))
    return paths


LEGEND = (
    "In brackets: against bicubic; for grids, what the target has at the same lines. PSNR, SSIM and consistency (PSNR "
    "between the output reduced to the input's size and the input): the higher the better; LPIPS and ST-LPIPS: the "
    "lower the better. Grids: gradient on the borders of patches or blocks over that elsewhere, in each picture for "
    "the network call whose grid shows most (target and interpolations: for the first call); block lines: over that on "
    "lines at the same place in a patch. Flat energy: high frequencies on the target's flat areas over the target's "
    "own. Grids, lines and flat energy: 1 at best. Peak: the largest of all pictures, the networks of the metrics "
    "included."
)


def _cell(column: str, summary: dict, bicubic: dict | None) -> str:
    value = summary.get(column)
    text = format_figure(column, value) if column in summary else ""
    if (target := summary.get("target", {}).get(column)) is not None:
        return f"{text} ({format_figure(column, target)})"
    compared = METRICS[metric_of(column)[0]].baseline
    if not compared or not bicubic or value is None or not bicubic[column]:
        return text
    if compared == "difference":
        return f"{text} ({value - bicubic[column]:+.2f})"
    return f"{text} ({(value / bicubic[column] - 1) * 100:+.0f} %)"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
