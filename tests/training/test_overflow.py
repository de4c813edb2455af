"""Which optimizers of DeepSpeed are trusted to skip an update that is not finite."""

import deepspeed
import pytest
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from sat_sr.training.engine import require_overflow_check


class Other:
    """As DeepSpeed's optimizer for bfloat16 with float32 accumulation."""


def zero(**attributes):
    optimizer = DeepSpeedZeroOptimizer.__new__(DeepSpeedZeroOptimizer)
    vars(optimizer).update(attributes)
    return optimizer


def test_zero_is_made_to_look_at_its_gradients_in_every_precision():
    """0.18 and 0.19 look where the float16 of the JSON, or its bf16 section, asks for it: never in float32."""
    optimizer = zero(check_grad_overflow=False, overflow=False)
    require_overflow_check(optimizer)
    assert optimizer.check_grad_overflow is True


def test_versions_that_cannot_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(deepspeed, "__version__", "0.17.6")
    for optimizer in (zero(overflow=False), Other()):
        with pytest.raises(ValueError, match=r"DeepSpeed 0\.17\.6 would .* pip install 'deepspeed>=0\.19\.8'$"):
            require_overflow_check(optimizer)
    able = Other()
    able.overflow = False
    require_overflow_check(able)
