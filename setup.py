"""Packaging of sat_sr. The exact versions that the tests ran with are in scripts/constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="sat-sr",
    version="0.1.0",
    description="Inf-DiT image upscaling: any size, small memory, exact",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["sat_sr", "sat_sr.*"]),
    install_requires=[
        "torch>=2.6",
        "SwissArmyTransformer>=0.4.12",
        # Imported by `import sat` but not declared by it:
        "deepspeed>=0.16",
        "requests>=2.28",
        "wandb>=0.16",
        "triton>=3.0; platform_system == 'Linux'",
        "transformers>=4.50",  # the CLIP image tower
        "webdataset>=1.0.2",
        "pillow>=11.3",
        "numpy>=1.26",
        "einops>=0.8",
        "safetensors>=0.4.5",
        "tqdm>=4.66",
    ],
)
