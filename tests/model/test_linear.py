"""The fused Linear against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.backends import mkldnn

from sat_sr.model.linear import linear, linear_gelu


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# The GELU of the error function is up to 5e-4 away.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_gelu_of_a_gpu_is_the_one_by_tanh(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in ((2, 3, 64, 80), (320, 80), (320,)))
    x, weight, bias = (t.to(dtype) for t in (x, weight / 80**0.5, bias))
    wanted = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with torch.no_grad():
        found = linear_gelu(x.cuda(), weight.cuda(), bias.cuda())
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=tolerance, atol=tolerance)


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
