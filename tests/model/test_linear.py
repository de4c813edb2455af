"""The fused Linear against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.backends import mkldnn

from sat_sr.model.linear import linear, linear_gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_linear_and_gelu_are_those_of_pytorch(monkeypatch, called_operators, dtype, allowed, grad):
    x = torch.randn(2, 3, 7, 24, dtype=dtype)[..., 4:20]  # rows that lie apart
    weight, bias = torch.randn(20, 16, dtype=dtype, requires_grad=grad), torch.randn(20, dtype=dtype)
    wanted = F.linear(x, weight, bias)
    monkeypatch.setattr(mkldnn, "enabled", allowed)
    with torch.set_grad_enabled(grad), called_operators:
        product, activated = linear(x, weight, bias), linear_gelu(x, weight, bias)
    torch.testing.assert_close(product, wanted)
    torch.testing.assert_close(activated, F.gelu(wanted, approximate="tanh"))
    assert activated.requires_grad == grad
    fused = allowed and not grad and dtype == torch.float32 and mkldnn.is_available()
    assert sum("mkldnn._linear_pointwise" in name for name in called_operators.names) == 2 * fused
