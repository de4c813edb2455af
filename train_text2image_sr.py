#!/usr/bin/env python3
"""Train an Inf-DiT upscaler: see docs/training.md, or --help."""

import sys

from sat_sr.training.arguments import parse_arguments

if __name__ == "__main__":
    settings = parse_arguments(sys.argv[1:])
    from sat_sr.training.launch import launch  # torch, SAT and DeepSpeed: seconds

    sys.exit(launch(settings))
