"""What the network takes from SAT (SwissArmyTransformer), imported here and nowhere else.

SAT imports DeepSpeed, and both report on import, partly on standard output, that this machine has no GPU or no compiled
kernels; newer versions of PyTorch warn that SAT uses what is to be removed. That matters to nobody who enlarges a
picture, and would appear in the middle of progress bars and JSON lines: such warnings, and log messages up to
warnings, are suppressed while they are imported. Logged errors and exceptions are not.
"""

from __future__ import annotations

import logging
import warnings

_before = logging.root.manager.disable
logging.disable(max(_before, logging.WARNING))
try:
    with warnings.catch_warnings():
        for _kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", _kind)
        from sat import mpu
        from sat.model.base_model import BaseMixin, BaseModel
        from sat.model.transformer import BaseTransformer
finally:
    logging.disable(_before)

__all__ = ["BaseMixin", "BaseModel", "BaseTransformer", "mpu"]
