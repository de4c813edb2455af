#!/usr/bin/env python3
"""Upscale pictures: see README.md, or --help."""

from sat_sr.programs.start import upscale

if __name__ == "__main__":
    upscale()
