"""The command line of generation: from arguments to pictures on the disk, and what is said meanwhile."""
