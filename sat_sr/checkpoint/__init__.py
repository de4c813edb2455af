"""Weights: files, what is in them, and where they lie.

reading.py            file or training folder -> Checkpoint -> network        writing.py   the way back
tensor_files.py       the two formats, read without running code, written without half-written files
find_weights.py       which file of a folder is meant          run_folder.py   the names in a training folder
clip_weights.py       where the CLIP tower comes from when the file carries none
sampler_defaults.py   how a model wants to be sampled, as its file says
"""

from importlib import import_module

FORMAT = "sat_sr"  # in the metadata of files, and the key of what they say of themselves

# Imported on first use: they need PyTorch, whose import takes seconds.
_EXPORTS = {
    "DEFAULT_CLIP": "clip_weights",
    "Checkpoint": "reading",
    "checkpoint_hash": "reading",
    "load": "reading",
    "load_image_encoder": "reading",
    "load_model": "reading",
    "save_pt": "writing",
    "save_safetensors": "writing",
}

__all__ = ["FORMAT", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
