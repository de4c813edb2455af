"""The training of the network: a DeepSpeed run that can be interrupted and resumes exactly. Its program is main.py."""
