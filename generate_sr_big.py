#!/usr/bin/env python3
"""Upscale pictures: see README.md, or --help."""

import sys

from sat_sr.inference.run import main

if __name__ == "__main__":
    sys.exit(main())
