"""How good a network is: figures, tables and sheets of pictures, next to plain interpolation. See scripts/evaluate.py.

runner.py      every picture through every run          records.py    results on the disk, to go on from
pairs.py       sharp pictures and the inputs made from them
settings.py    what is compared: ways to sample         source.py     which code made a result
metrics.py     the figures, by name: artefacts.py (grids, grain), perceptual.py (networks from packages)
report.py      tables, as Markdown and JSON             sheet.py      pictures side by side, and where a run is worst
"""
