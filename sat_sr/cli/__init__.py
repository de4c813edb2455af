"""The command line of generation: from arguments to pictures on the disk, and what is reported meanwhile.

main.py          flags, signals, a run, the exit code      arguments.py      the flags; light: --help answers at once
run.py           picture after picture; ranks share the list
inputs.py        arguments -> pictures to do: entry.py     find_network.py   the weights when none are named
outputs.py       where the pictures go: name_template.py, free_names.py
worker.py        one picture, from file to file: target.py (the sizes of its passes), work.py (what was decided)
console.py       lines, bars or JSON: describe.py, time_left.py
errors.py        what ends a run
"""
