"""The training of the network: a DeepSpeed run that can be interrupted and goes on exactly. Its program is main.py."""
