#!/usr/bin/env python3
"""Pictures with detail at every scale, where a bench needs data of the right shape: make_pictures.py DIR COUNT SIDE."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

folder, count, side = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
for number in range(count):
    generator = np.random.default_rng(number)
    picture = np.zeros((side, side, 3))
    cell = side
    while cell >= 1:
        coarse = generator.normal(size=(-(-side // cell), -(-side // cell), 3))
        picture += cell**0.5 * np.kron(coarse, np.ones((cell, cell, 1)))[:side, :side]
        cell //= 2
    picture = 128 + 48 * picture / picture.std()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")
