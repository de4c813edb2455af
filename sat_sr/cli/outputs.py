"""Where the pictures go: names, and what becomes of files that are there already.

No torch in here: names are planned before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sat_sr.cli.entry import Entry
from sat_sr.cli.free_names import FreeNames, key_of
from sat_sr.cli.name_template import DEFAULT_TEMPLATE, OF_SIZE, check_template, fill_template
from sat_sr.image_io.picture import FORMAT_CHOICES, WRITE_FORMATS, PictureError
from sat_sr.image_io.storage import require_writable, storage_error


@dataclass(frozen=True)
class Output:
    """One line of the plan: `entry` is written to `path`, unless `skip` or `error` is set.

    wanted    the path before it was numbered: if it must be again, numbers count from that
    skip      finished by an earlier run, or `left_out`: the entry is itself an output, found in a searched folder
    stored    the settings in the finished output of an earlier run, if it carries any
    replaces  a file that is there now gives way; one that appears later does not
    note      to be said once
    """

    entry: Entry
    path: Path
    wanted: Path | None = None
    skip: bool = False
    left_out: bool = False
    stored: Mapping[str, object] | None = None
    replaces: bool = False
    error: str | None = None
    note: str | None = None


def plan_outputs(
    entries: Sequence[Entry], *, out_dir: str | os.PathLike | None = None, out_file: str | os.PathLike | None = None,
    template: str = DEFAULT_TEMPLATE, format: str = "png", values: Mapping[str, object] | None = None,
    fields_of: Callable[[Entry], Mapping[str, object]] | None = None, existing: str = "error",
    stored_in: Callable[[Path], Mapping[str, object] | None] = lambda path: None, taken: Iterable[Path] = (),
) -> list[Output]:  # fmt: skip
    """Gives every entry its own output path.

    The same entries and files give the same plan. Ranks plan at different times: one that finds outputs of another may
    number on from them ("number"), or find them among its entries (`left_out`); the rest of its plan is the same.

    out_dir or out_file  a folder (entries keep their sub-folder in it), or the one file for a single entry
    template             name without suffix; fields: {stem}, {width}, {height} and {scale} (of the output, by
                         `fields_of(entry)`), and those of `values`, e.g. {seed}
    format               "png", "jpg", "webp", "tiff", or "keep" (the input's where it can be written, else PNG);
                         out_file's own suffix stands as it is
    existing             what becomes of a finished output: "error", "skip" (if it is not of another picture),
                         "overwrite", or "number": it stays and the new one gets a numbered name
    stored_in            the settings that a picture file carries: their "source" tells what it was made of
    taken                outputs that this run has made already
    Names that two entries would share are numbered in order: a_sr.png, a_sr_2.png. No output is an input of the run:
    the name is numbered then, too; but a file that was merely found in a folder and bears the output name of another
    entry is an earlier output, and left out. ValueError for a template or combination that cannot work.
    """
    _check_choices(len(entries), out_dir, out_file, format, existing)
    wants_size = check_template(template, [*(values or {}), "stem", *OF_SIZE])
    if wants_size and fields_of is None and out_file is None:
        raise ValueError("the name asks for the output's size, which is not known here: leave it out")

    def wanted(entry: Entry) -> Path:
        if out_file is not None:
            return Path(out_file)
        fields = {**dict.fromkeys(OF_SIZE, 0), **(values or {}), "stem": entry.stem}
        if wants_size and not entry.error:
            fields |= fields_of(entry)
        return Path(out_dir, entry.folder, fill_template(template, fields) + _suffix(entry, format))

    plan = []
    for entry in entries:
        try:
            plan.append(Output(entry, wanted(entry), error=entry.error))
        except PictureError as error:
            plan.append(Output(entry, Path(out_dir, entry.folder, entry.stem), error=str(error)))
    sources = [key_of(entry.source) for entry in entries]
    inputs = {key for entry, key in zip(entries, sources, strict=True) if entry.explicit or entry.member}
    plan = _without_earlier_outputs(plan, sources, inputs)
    names = FreeNames(inputs, existing, stored_in, taken)
    return [
        output if output.error or output.left_out else _named(output, own, names, existing, out_file is None)
        for output, own in zip(plan, sources, strict=True)
    ]


def into_writable_folders(plan: list[Output]) -> list[Output]:
    """The plan, with an error for what cannot be written. PictureError when nothing can: ranks find that alike."""
    refused: dict[Path, str] = {}
    folders = {output.path.parent for output in plan if not (output.error or output.skip)}
    for folder in sorted(folders):
        try:
            require_writable(folder)
        except PictureError as error:
            refused[folder] = str(error)
    if refused and refused.keys() == folders:
        raise PictureError(next(iter(refused.values())))
    return [
        replace(output, error=output.error or (None if output.skip else refused.get(output.path.parent)))
        for output in plan
    ]


def _check_choices(
    entries: int, out_dir: str | os.PathLike | None, out_file: str | os.PathLike | None, format: str, existing: str
) -> None:
    if (out_dir is None) == (out_file is None):
        raise ValueError("give either a folder for the outputs or one output file")
    if existing not in ("error", "skip", "overwrite", "number"):
        raise ValueError(f"existing={existing!r} is not one of 'error', 'skip', 'overwrite', 'number'")
    if format != "keep" and format not in FORMAT_CHOICES:
        raise ValueError(f"format {format!r} is not written: choose from {', '.join([*FORMAT_CHOICES, 'keep'])}")
    if out_file is not None:
        if entries > 1:
            raise ValueError(f"{out_file} is one file for {entries} pictures: use --out-dir for several")
        if Path(out_file).suffix.lower() not in WRITE_FORMATS:
            raise ValueError(f"{out_file} names no format that is written: end it in {', '.join(WRITE_FORMATS)}")


def _without_earlier_outputs(plan: Sequence[Output], sources: Sequence[str], inputs: Collection[str]) -> list[Output]:
    """The plan, where files that were merely found are left out if they bear the output name of another entry.

    sources  key of each entry's file;  inputs  those that are meant as inputs, whatever their names are
    """
    makers: dict[str, Output] = {}  # by the key of the name that they want; the first one counts
    for output, own in zip(plan, sources, strict=True):
        if not output.error and (key := key_of(output.path)) != own:
            makers.setdefault(key, output)

    def maker(key: str) -> Output | None:
        if key in makers:
            return makers[key]
        output = makers.get(re.sub(r"_\d+(\.\w+)$", r"\1", key))  # a numbered name, beside the wanted one
        return output if output and os.path.exists(output.path) else None

    def left_out(output: Output, own: str) -> Output:
        if output.error or own in inputs or (of := maker(own)) is None:
            return output
        note = f"{output.entry.name} is left out: it bears the output name of {of.entry.name}"
        return replace(output, skip=True, left_out=True, note=note)

    return [left_out(output, own) for output, own in zip(plan, sources, strict=True)]


def _named(output: Output, own: str, names: FreeNames, existing: str, may_number: bool) -> Output:
    """With the name that it gets, and what becomes of the file that is there."""
    path = output.path
    try:
        name, reason = names.take(output.entry, own, path)
        if reason and not may_number:
            raise ValueError(f"{reason}: choose another name for the output")
        note = f"{output.entry.name} is written to {name.path}: {reason}" if reason else None
        wanted, path = path, name.path
        named = _with_existing(replace(output, path=path, wanted=wanted, note=note), existing)
        return replace(named, stored=name.stored) if named.skip else named
    except OSError as error:  # too long a name, a folder that may not be looked into
        return replace(output, path=path, error=str(storage_error(path, error)))


def _suffix(entry: Entry, format: str) -> str:
    if format != "keep":
        return FORMAT_CHOICES[format]
    suffix = Path(entry.member.name if entry.member else entry.source).suffix
    return suffix if suffix.lower() in WRITE_FORMATS else ".png"


def _with_existing(output: Output, existing: str) -> Output:
    path = output.path
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        error = f"{path} is {kind}: remove it or choose another name for the output"
    elif existing == "overwrite" or not path.is_file() or path.stat().st_size == 0:
        return replace(output, replaces=existing == "overwrite" or os.path.lexists(path))
    elif existing == "skip":
        return replace(output, skip=True)
    else:
        error = f"{path} is there already: use --overwrite to replace it or --skip-existing to keep it"
    return replace(output, error=error)
