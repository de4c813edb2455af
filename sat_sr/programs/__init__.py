"""What the programs have in common: how they start and end, and what they are started by.

start.py           main of either, with a sentence for a missing package       exit_codes.py   what they end with
launcher.py        the rank that torchrun or Slurm gives a process             allocator.py    freed memory is kept
cores.py           how many are ours
streams.py         output that nobody reads on
flag_values.py     what flags accept: numbers in a range, sizes, seeds
release_flags.py   flags of the release: their spellings, and those that decide nothing
"""
