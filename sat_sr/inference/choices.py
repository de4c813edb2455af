"""What there is to choose for a plan. Apart from what the names stand for, which wants PyTorch: `--help` does not."""

MODES = ("auto", "full", "ar2", "ar")  # `planner`
OFFLOADS = ("none", "state", "all")  # `planner`; also "auto"
KERNELS = ("sdpa", "merge", "flash", "flex", "cudnn")  # `model.attention_kernels`; also "auto"
BLOCK_BATCH = 4  # what the release's launcher gives ar2; its program alone takes 1
