"""What SAT and DeepSpeed remark while they are imported is kept from the output; what goes wrong is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *search: Path) -> subprocess.CompletedProcess:
    """A fresh interpreter, for an import happens once; modules in `search` come before those that are installed."""
    path = ":".join(map(str, (*search, ROOT)))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_the_python_interface_imports_in_silence():
    done = run(
        "from sat_sr import Upscaler\n"
        f"Upscaler.from_checkpoint({str(ROOT / 'ckpt/mini.safetensors')!r}, device='cpu').close()\n"
        "import logging; assert logging.root.manager.disable == 0; logging.getLogger('mine').warning('heard')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "heard\n")


def test_what_the_user_had_switched_off_stays_off():
    done = run(
        "import logging; logging.disable(logging.ERROR)\n"
        "import sat_sr.model.inf_dit; print(logging.root.manager.disable)"
    )
    assert done.stdout == "40\n", done.stderr


def test_errors_at_import_are_shown(tmp_path):
    (tmp_path / "sat").mkdir()
    (tmp_path / "sat/__init__.py").write_text(
        "import logging\n"
        "import warnings\n"
        "warnings.warn('is to be removed', FutureWarning)\n"
        "warnings.warn('spoils the result')\n"
        "logging.warning('no GPU')\n"
        "logging.error('libfoo is damaged')\n"
        "raise ImportError('cannot load libfoo')\n"
    )
    done = run("import sat_sr.model.inf_dit", tmp_path)
    assert done.returncode == 1 and "cannot load libfoo" in done.stderr and "libfoo is damaged" in done.stderr
    assert "spoils the result" in done.stderr
    assert "no GPU" not in done.stderr and "is to be removed" not in done.stderr
