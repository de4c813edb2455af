"""What there is to choose for a plan. Apart from what the names stand for, which wants PyTorch: `--help` does not."""

MODES = ("auto", "full", "ar2", "ar")  # `planner`
OFFLOADS = ("none", "state", "all")  # `planner`; "auto" besides
KERNELS = ("sdpa", "merge", "flash", "flex", "cudnn")  # `model.attention_kernels`; "auto" besides
BLOCK_BATCH = 4  # the release's default for ar2
