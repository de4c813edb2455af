"""Where the pictures go: names, and what becomes of files that are there already.

No torch in here: names are planned before anything heavy is imported.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sat_sr.cli.entry import Entry
from sat_sr.image_io.picture import FORMAT_CHOICES, WRITE_FORMATS, PictureError
from sat_sr.image_io.storage import storage_error

DEFAULT_TEMPLATE = "{stem}_sr"
OF_SIZE = ("width", "height", "scale")  # fields that differ from picture to picture


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
    values = dict(values or {})
    wants_size = check_template(template, [*values, "stem", *OF_SIZE])

    def wanted(entry: Entry) -> Path | PictureError:
        if out_file is not None:
            return Path(out_file)
        fields = {**dict.fromkeys(OF_SIZE, 0), **values, "stem": entry.stem}
        if wants_size and not entry.error:
            if fields_of is None:
                raise ValueError("the name asks for the output's size, which is not known here: leave it out")
            try:
                fields |= fields_of(entry)
            except PictureError as error:
                return error
        return Path(out_dir, entry.folder, _filled_in(template, fields) + _suffix(entry, format))

    choices = [wanted(entry) for entry in entries]
    sources = [_key(entry.source) for entry in entries]
    inputs = {key for entry, key in zip(entries, sources, strict=True) if entry.explicit or entry.member}
    makers = _makers(entries, sources, choices)
    used = {_key(path) for path in taken}
    stored_in = functools.cache(stored_in)
    plan = []
    for entry, own, choice in zip(entries, sources, choices, strict=True):
        if entry.error or isinstance(choice, PictureError):
            path = choice if isinstance(choice, Path) else Path(out_dir, entry.folder, entry.stem)
            plan.append(Output(entry, path, error=entry.error or str(choice)))
            continue
        maker = _maker(own, makers)
        if maker is not None and own not in inputs:
            note = f"{entry.name} is left out: it bears the output name of {maker.name}"
            plan.append(Output(entry, choice, skip=True, left_out=True, note=note))
            continue

        def stays(path: Path, entry: Entry = entry) -> str | None:
            """Why the name of a file that is there cannot be had."""
            if existing == "skip" and os.path.isfile(path):
                if (made_of := source_in(stored_in(path))) is not None and made_of != entry.origin():
                    return f"{path} is of another picture"
            elif existing == "number" and os.path.lexists(path):
                return f"{path} is there already"
            return None

        path = choice
        try:
            path, reason = _unused(choice, inputs | {own}, used, stays)
            if reason and out_file is not None:
                raise ValueError(f"{reason}: choose another name for the output")
            used.add(_key(path))
            note = f"{entry.name} is written to {path}: {reason}" if reason else None
            output = Output(entry, path, wanted=choice, note=note)
            output = _with_existing(output, existing)
            plan.append(replace(output, stored=stored_in(path)) if output.skip else output)
        except OSError as error:  # too long a name, a folder that may not be looked into
            plan.append(Output(entry, path, error=str(storage_error(path, error))))
    return plan


def _check_choices(
    entries: int, out_dir: str | os.PathLike | None, out_file: str | os.PathLike | None, format: str, existing: str
) -> None:
    if (out_dir is None) == (out_file is None):
        raise ValueError("give either a folder for the outputs or one output file")
    if existing not in ("error", "skip", "overwrite", "number"):
        raise ValueError(f"existing={existing!r} is none of 'error', 'skip', 'overwrite', 'number'")
    if format != "keep" and format not in FORMAT_CHOICES:
        raise ValueError(f"format {format!r} is not written: choose from {', '.join([*FORMAT_CHOICES, 'keep'])}")
    if out_file is not None:
        if entries > 1:
            raise ValueError(f"{out_file} is one file for {entries} pictures: use --out-dir for several")
        if Path(out_file).suffix.lower() not in WRITE_FORMATS:
            raise ValueError(f"{out_file} names no format that is written: end it in {', '.join(WRITE_FORMATS)}")


def _makers(
    entries: Sequence[Entry], sources: Sequence[str], choices: Sequence[Path | PictureError]
) -> dict[str, tuple[Entry, Path]]:
    """Key of each output's name -> the first entry that wants it, and the path that it wants."""
    return {
        _key(choice): (entry, choice)
        for entry, source, choice in reversed(list(zip(entries, sources, choices, strict=True)))
        if isinstance(choice, Path) and not entry.error and _key(choice) != source
    }


def source_in(stored: Mapping[str, object] | None) -> object:
    """What a finished output was made of, as `Entry.origin` tells it; None when that is not known."""
    return None if stored is None else stored.get("source")


def _unused(
    choice: Path, inputs: set[str], used: set[str], stays: Callable[[Path], str | None]
) -> tuple[Path, str | None]:
    """The wanted path, or the first numbered one that may be written; why it was not the wanted one."""
    path, reason = choice, None
    for number in itertools.count(2):
        if (key := _key(path)) in inputs:
            reason = f"{path} is itself an input"
        elif why := stays(path):
            reason = why
        elif key in used:
            reason = reason or f"{choice} is the output of another input"
        else:
            return path, reason
        path = numbered(choice, number)


def numbered(path: Path, number: int) -> Path:
    """a_sr.png, 2 -> a_sr_2.png"""
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def next_free(path: Path) -> Path:
    """The first numbered name that no file has now."""
    return next(name for number in itertools.count(2) if not os.path.lexists(name := numbered(path, number)))


def _maker(key: str, maker_of: Mapping[str, tuple[Entry, Path]]) -> Entry | None:
    """The entry whose output a file is by its name: the one that was wanted, or a numbered one beside that."""
    if key in maker_of:
        return maker_of[key][0]
    entry, path = maker_of.get(re.sub(r"_\d+(\.\w+)$", r"\1", key), (None, None))
    return entry if path is not None and os.path.exists(path) else None


def check_template(template: str, fields: Sequence[str]) -> bool:
    """Whether a name template asks for what depends on the output's size.

    ValueError if it is no template of these fields: nothing but `{field}` and `{field:format}` is allowed, since a
    template may look into the objects that it formats.
    """
    try:
        parts = list(string.Formatter().parse(template))
        names = [name for _, name, _, _ in parts if name is not None]
        unknown = [name for name in names if name not in fields]
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(f"no field {{{unknown[0]}}} is known here, only {known}")
        if any("{" in (spec or "") for _, _, spec, _ in parts):
            raise ValueError("a format may not hold fields")
        if any(re.search(r"\d{4}", spec or "") for _, _, spec, _ in parts):  # {stem:>9999999999} fills the memory
            raise ValueError("a format may not be wider than 999")
    except ValueError as error:
        message = f"the name {template!r} is no template ({error}): write it like {DEFAULT_TEMPLATE!r}"
        raise ValueError(message) from error
    literal = "".join(text for text, *_ in parts)
    if "/" in literal or "\\" in literal or "\0" in literal or not template.strip(" ."):
        raise ValueError(f"the name {template!r} is no file name: folders belong into --out-dir")
    if Path(template).suffix.lower() in WRITE_FORMATS:
        raise ValueError(f"the name {template!r} has a suffix: leave it out, --format sets it")
    return not set(names).isdisjoint(OF_SIZE)


def _filled_in(template: str, fields: Mapping[str, object]) -> str:
    try:
        return template.format(**fields)
    except (ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"the name {template!r} cannot be made ({error}): simplify its formats") from error


def _suffix(entry: Entry, format: str) -> str:
    if format != "keep":
        return FORMAT_CHOICES[format]
    suffix = Path(entry.member.name if entry.member else entry.source).suffix
    return suffix if suffix.lower() in WRITE_FORMATS else ".png"


def _key(path: str | os.PathLike) -> str:
    """Equal for paths that name one file; also for those that would on a file system that ignores case."""
    return os.path.realpath(path).casefold()


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
