"""sat_sr: Inf-DiT, a diffusion transformer that upscales pictures of any size in bounded memory."""

from importlib import import_module

__version__ = "0.1.0"

# Imported on first use: SwissArmyTransformer alone takes seconds to import.
_EXPORTS = {
    "InfDiT": "sat_sr.model.inf_dit",
    "InfDiTConfig": "sat_sr.config",
    "Upscaler": "sat_sr.inference.upscaler",
}

__all__ = ["InfDiT", "InfDiTConfig", "Upscaler", "__version__"]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'sat_sr' has no attribute {name!r}")
