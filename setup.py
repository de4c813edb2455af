"""Packaging of sat_sr. The exact versions that the tests ran with are in scripts/constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sat_sr/__init__.py").read_text())[1]

EXTRAS = {
    "train": [],  # nothing beyond what every installation has: kept so that "sat-sr[train]" can be asked for
    "eval": ["scikit-image>=0.22", "scipy>=1.11", "stlpips_pytorch>=0.0.2"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "scipy>=1.11",  # independent reference for the degradation's kernels and blurs
        "tifffile>=2024.1",  # independent reader of 16-bit TIFF
    ],
}

setup(
    name="sat-sr",
    version=VERSION,
    description="Inf-DiT image upscaling: any size, small memory, exact",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["sat_sr", "sat_sr.*"]), "sat_sr.ckpt"],
    package_dir={"sat_sr.ckpt": "ckpt"},  # installed, the weights that ship lie in the package
    package_data={
        "sat_sr": ["py.typed"],
        "sat_sr.ckpt": ["mini.safetensors", "README.md"],
        "sat_sr.training": ["ds_config_zero_clip.json"],
    },
    entry_points={
        "console_scripts": ["sat-sr = sat_sr.programs.start:upscale", "sat-sr-train = sat_sr.programs.start:train"],
    },
    install_requires=[
        "torch>=2.11",  # earlier ones print into our standard output, 2.7 may hang where ranks part
        "SwissArmyTransformer>=0.4.12",
        # Imported by `import sat` but not declared by it:
        "deepspeed>=0.19.8",  # earlier ones apply steps that are not finite, outside of fp16
        "requests>=2.28",
        "wandb>=0.19",
        "triton>=3.0; platform_system == 'Linux'",
        "transformers>=4.50",  # the CLIP image tower
        "huggingface_hub>=0.26",  # where that is fetched from
        "webdataset>=1.0.2",
        "braceexpand>=0.1.7",  # names of shards like {000..099}.tar
        "pydantic>=2",  # the errors that DeepSpeed raises for its configuration
        "pillow>=11.3",
        "numpy>=1.26",
        "einops>=0.8",
        "safetensors>=0.4.5",
        "tqdm>=4.66",
        "tensorboardX>=2.6",  # the log of training, without TensorFlow
        "psutil>=5.9",  # how much memory is free
    ],
    extras_require=EXTRAS,
)
