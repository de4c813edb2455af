"""The fused Linear against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.backends import mkldnn

from sat_sr.model.linear import linear, linear_gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_linear_and_gelu_are_those_of_pytorch(monkeypatch, dtype, fused, grad):
    x = torch.randn(2, 3, 7, 24, dtype=dtype)[..., 4:20]  # rows that lie apart
    weight, bias = torch.randn(20, 16, dtype=dtype, requires_grad=grad), torch.randn(20, dtype=dtype)
    wanted = F.linear(x, weight, bias)
    monkeypatch.setattr(mkldnn, "enabled", fused)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(linear(x, weight, bias), wanted)
        activated = linear_gelu(x, weight, bias)
    torch.testing.assert_close(activated, F.gelu(wanted, approximate="tanh"))
    assert activated.requires_grad == grad
