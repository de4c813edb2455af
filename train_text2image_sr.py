#!/usr/bin/env python3
"""Train an Inf-DiT upscaler: see docs/training.md, or --help."""

from sat_sr.programs.start import train

if __name__ == "__main__":
    train()
