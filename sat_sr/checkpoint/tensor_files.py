"""Files of tensors, read without running code and written without half-written files. Nothing here knows Inf-DiT.

Two formats, told apart by their first bytes and not by their names: PyTorch's zip of a pickle (`.pt`, `.bin`) and
safetensors. Reading maps the file into memory: a tensor costs nothing until its values are touched.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sat_sr.atomic_files import atomic_file

# What training checkpoints carry beside tensors and torch does not allow by itself: NumPy's random state, which SAT
# saves under the names of NumPy 1 or 2, and objects whose content nobody needs here, read as inert namespaces.
_INERT = argparse.Namespace
_HARMLESS = [
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float32(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("u1", "u4", "i8", "u8", "f4", "f8")),
    (_INERT, "argparse.Namespace"),
    *((_INERT, f"deepspeed.runtime.fp16.loss_scaler.{name}") for name in ("LossScaler", "DynamicLossScaler")),
]

# What a damaged pickle can end in, and a damaged zip.
_OF_DAMAGED_PICKLES = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError, ImportError, MemoryError, struct.error,
)  # fmt: skip
_OF_DAMAGED_ZIPS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, struct.error)

_SAFETENSORS_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def is_safetensors(path: Path) -> bool:
    """Whether the file is a safetensors file, and not PyTorch's.

    Raises ValueError for what is neither, with what it seems to be; FileNotFoundError.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return False
    if head[8:9] == b"{":
        return True
    text = head.lstrip().lower()
    if not head:
        raise ValueError(f"{path} is empty: fetch it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page and no checkpoint: download the file itself, by the page's download button or link"
        )
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer and not the file it stands for: run git lfs pull")
    if head.startswith(b"\x80"):
        raise ValueError(
            f"{path} is a bare pickle (PyTorch's format before 1.6, or no checkpoint at all), which is not read: "
            "if it is yours, load it where it was made and save it again with torch.save"
        )
    raise ValueError(
        f"{path} is not a checkpoint: neither a PyTorch file (.pt) nor a safetensors file begins like this"
    )


def read_pt(path: Path) -> Any:
    """What torch.save wrote, memory-mapped, by `torch.load(weights_only=True)`: no code of the file runs.

    Raises ValueError when the file is damaged, no PyTorch file, or asks for code. Damage of the tensors' values:
    `check_values`.
    """
    _check_zip(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _OF_DAMAGED_PICKLES as error:
        if isinstance(error, pickle.UnpicklingError) and (unsafe := _unsafe_globals(path)):
            raise ValueError(
                f"{path} is refused and nothing in it was run: besides tensors it holds {unsafe}; get plain weights, "
                'or, if you trust its maker, save torch.load(…, weights_only=False)["module"] again'
            ) from None
        # Of PyTorch's text, which begins with advice, what it is about.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): fetch it again") from error


def check_values(path: Path) -> None:
    """Reads the whole file. Raises ValueError where the checksums of a `.pt` say that it is damaged.

    PyTorch writes checksums and looks at none. Safetensors have none.
    """
    if is_safetensors(path):
        return
    with _opened(path) as archive:
        _check_entries(path, archive, archive.infolist())


def _unsafe_globals(path: Path) -> str:
    """The functions and classes that a `.pt` asks for and that are not allowed, read without running it."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except _OF_DAMAGED_PICKLES:  # it cannot even be listed
        return ""


def _check_zip(path: Path) -> None:
    """Raises ValueError unless the file is a whole zip with PyTorch's entries, stored as they are, and what is in them
    is what their checksums say; not yet the values of tensors."""
    with _opened(path) as archive:
        entries = archive.infolist()
        _check_kind(path, entries)
        _check_entries(path, archive, [entry for entry in entries if "/data/" not in entry.filename])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises ValueError where it is no whole zip."""
    try:
        archive = zipfile.ZipFile(path)
    except _OF_DAMAGED_ZIPS as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a place before the file's start
            raise
        raise ValueError(
            f"{path} is cut off or damaged ({path.stat().st_size:,} bytes, the zip's directory at its end is not "
            "there): fetch it again, and compare its size with the source's"
        ) from None
    with archive:
        yield archive


def _check_entries(path: Path, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raises ValueError for one that is not what its checksum says; 0 stands for none."""
    for entry in entries:
        if not entry.CRC:
            continue
        try:
            with archive.open(entry) as content:
                while content.read(1 << 20):
                    pass
        except _OF_DAMAGED_ZIPS as error:
            raise ValueError(f"{path} is damaged ({error}): fetch it again") from error


def _check_kind(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "data.pkl" not in names:
        inside = ", ".join(entry.filename for entry in entries[:3]) or "nothing"
        raise ValueError(f"{path} is a zip but no checkpoint (inside: {inside}): unpack it and name the file in it")
    if "constants.pkl" in names:
        raise ValueError(f"{path} is a TorchScript program and no checkpoint: get the weights that it was made from")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"{path} was packed again with compression: unpack it and zip it with compression off")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, memory-mapped, and metadata of a safetensors file. Raises ValueError when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut off or damaged ({path.stat().st_size:,} bytes; {error}): fetch it again, "
            "and compare its size with the source's"
        ) from None


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, dtype: torch.dtype | None = None
) -> None:
    """Writes tensors as dtype (None: as they are), atomically, one at a time.

    The library's writer wants all tensors at once, converted: as much memory as the file. A header and the bytes of one
    tensor after the other, largest alignment first as the library orders them, is the whole format.

    Raises ValueError when a value does not fit dtype; OSError.
    """
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype or tensor.dtype
        begin, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary, open(temporary, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            file.write(convert(name, tensor, dtype).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def write_pt(path: Path, content: Any) -> None:
    """torch.save, atomically."""
    with atomic_file(path) as temporary:
        torch.save(content, temporary)


def convert(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """tensor as dtype (None: as it is). Raises ValueError when a finite value overflows."""
    if dtype is None or tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(converted.isfinite(), tensor.isfinite()):
        raise ValueError(f"{name} reaches {tensor.abs().max():.3g}, more than fp16 holds (65504): use bf16 or fp32")
    return converted
