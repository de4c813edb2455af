"""Every kernel equals a brute force in float64, at the corner, at the border and inside the picture."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from sat_sr.model import attention_kernels, flex_attention, stock
from sat_sr.model.attention_kernels import KERNELS, choose_kernel
from sat_sr.model.block_attention import Border, Extended, clamped_halo
from sat_sr.model.fusion import fused
from sat_sr.model.stock import attend_with_lse

B, I, J, H, L, D = 2, 2, 3, 2, 16, 8  # noqa: E741
NEIGHBOURS = [(0, 0), (-1, -1), (0, -1), (-1, 0)]  # self, top-left, left, top: the order of the checkpoints


def brute_force(q, k, v, relation_embed, origin):
    """One query at a time over a whole picture's keys; the group's first block is block `origin` of the picture."""
    out = torch.empty_like(q)
    for i in range(q.shape[1]):
        for j in range(q.shape[2]):
            row, col = origin[0] + i, origin[1] + j
            blocks = [(max(row + di, 0), max(col + dj, 0)) for di, dj in NEIGHBOURS]
            keys = [k[:, a, b] + relation_embed[r][:, None] for r, (a, b) in enumerate(blocks)]
            keys, values = torch.cat(keys, -2), torch.cat([v[:, a, b] for a, b in blocks], -2)
            for token in range(q.shape[4]):
                logits = torch.einsum("bhd,bhkd->bhk", q[:, i, j, :, token], keys) / D**0.5
                out[:, i, j, :, token] = torch.einsum("bhk,bhkd->bhd", logits.softmax(-1), values)
    return out


def picture(origin, seed=0):
    """Queries of a group, keys and values of a picture that ends with it, relation embeddings: all float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, cols = origin[0] + I, origin[1] + J
    return normal(B, I, J, H, L, D), *(normal(B, rows, cols, H, L, D) for _ in range(2)), normal(4, H, D)


def extended_of(k, v, origin):
    """The group's keys and values with their halo, cut out of the whole picture's clamped ones."""
    whole = clamped_halo(k, v)
    row, col = origin
    return Extended(whole.k[:, row:, col:], whole.v[:, row:, col:], Border(row == 0, col == 0))


ORIGINS = {"corner": (0, 0), "top": (0, 1), "left": (2, 0), "inside": (1, 2)}


@pytest.mark.parametrize("place", ORIGINS)
@pytest.mark.parametrize("kernel", ["sdpa", "merge", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_kernel_equals_brute_force(kernel, place):
    q, k, v, relation_embed = picture(ORIGINS[place])
    expected = brute_force(q, k, v, relation_embed, ORIGINS[place])
    q, k, v, relation_embed = (x.float() for x in (q, k, v, relation_embed))
    out = KERNELS[kernel](q, extended_of(k, v, ORIGINS[place]), relation_embed)
    assert (out.double() - expected).abs().max() < 2e-6


def flash_attn_func(q, k, v, return_attn_probs):
    """Stands in for the package: (N, L, h, d) each -> out, log-sum-exp (N, h, L), and something."""
    logits = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("nhqk,nkhd->nqhd", logits.softmax(-1), v), logits.logsumexp(-1), None


@pytest.mark.parametrize("place", ORIGINS)
def test_flash_equals_brute_force(monkeypatch, place):
    """What is around the package's function, which itself runs on CUDA alone."""
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    q, k, v, relation_embed = picture(ORIGINS[place])
    expected = brute_force(q, k, v, relation_embed, ORIGINS[place])
    q, k, v, relation_embed = (x.float() for x in (q, k, v, relation_embed))
    out = KERNELS["flash"](q, extended_of(k, v, ORIGINS[place]), relation_embed)
    assert (out.double() - expected).abs().max() < 2e-6


@pytest.mark.parametrize("place", ORIGINS)
def test_gradients_of_the_reference_equal_those_of_brute_force(place):
    tensors = [x.requires_grad_() for x in picture(ORIGINS[place])]
    q, k, v, relation_embed = tensors
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad((brute_force(q, k, v, relation_embed, ORIGINS[place]) * weight).sum(), tensors)
    out = KERNELS["sdpa"](q, extended_of(k, v, ORIGINS[place]), relation_embed)
    for gradient, wanted in zip(torch.autograd.grad((out * weight).sum(), tensors), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)


# Pairs of a block and a neighbour in a group of 2 x 3: the picture's corner block has 1 distinct neighbour, the others
# on its edges 2 each, all others 4 each.
PAIRS = {"corner": 1 + 3 * 2 + 2 * 4, "top": 3 * 2 + 3 * 4, "left": 2 * 2 + 4 * 4, "inside": 6 * 4}


@pytest.mark.parametrize("place", ORIGINS)
def test_no_block_computes_a_neighbour_twice(place):
    pairs = []

    def counting(q, k, v):
        pairs.extend((q_block.data_ptr(), float(k_block.sum())) for q_block, k_block in zip(q, k, strict=True))
        return attend_with_lse(q, k, v)

    *tensors, relation_embed = (x.float() for x in picture(ORIGINS[place]))
    q, k, v = (x[:1] for x in tensors)
    attention_kernels.merge(q, extended_of(k, v, ORIGINS[place]), relation_embed, attention=counting)
    assert len(pairs) == len(set(pairs)) == PAIRS[place]


@pytest.mark.parametrize("place", ORIGINS)
def test_the_reference_computes_no_neighbour_twice(monkeypatch, place):
    pairs, stock = [], torch.nn.functional.scaled_dot_product_attention

    def counting(q, k, v, scale):
        for q_block, values in zip(q, v, strict=True):
            pairs.extend((float(q_block[0, 0, 0]), float(block.sum())) for block in values.split(L, dim=-2))
        return stock(q, k, v, scale=scale)

    *tensors, relation_embed = (x.float() for x in picture(ORIGINS[place]))
    q, k, v = (x[:1] for x in tensors)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    attention_kernels.sdpa(q, extended_of(k, v, ORIGINS[place]), relation_embed)
    assert len(pairs) == len(set(pairs)) == PAIRS[place]


@pytest.mark.parametrize("place", ORIGINS)
def test_the_mask_of_flex_has_no_neighbour_twice(place):
    border = Border(ORIGINS[place][0] == 0, ORIGINS[place][1] == 0)
    mask = flex_attention._neighbour_mask((I, J), L, border, torch.device("cpu"))
    assert mask.BLOCK_SIZE == (L, L)  # a tile of the mask is a block of the picture here
    assert int(mask.full_kv_num_blocks.sum()) == PAIRS[place] and not mask.kv_num_blocks.any()


def test_kernels_that_cannot_run_name_what_they_need():
    cpu = torch.device("cpu")
    assert choose_kernel("auto", cpu, torch.float32, 80)[0] == "merge"
    for device in ("cpu", "cuda"):
        small = choose_kernel("auto", torch.device(device), torch.float32, 32, tokens_per_block=64)
        assert small == ("sdpa", "blocks of 64 tokens are too small to attend to one by one")
    reference = "the reference: merge needs the log-sum-exp of stock attention, which mps does not give"
    assert choose_kernel("auto", torch.device("mps"), torch.float32, 80) == ("sdpa", reference)
    with pytest.raises(ValueError, match=r"'flex' needs a CUDA device.*available here: sdpa, merge"):
        choose_kernel("flex", cpu, torch.float32, 80)
    with pytest.raises(ValueError, match=r"unknown attention kernel 'fast'.*sdpa, merge, flash, flex"):
        choose_kernel("fast", cpu, torch.float32, 80)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "head_dim", "lacks"),
    [
        ("merge", "mps", torch.float32, 80, "the log-sum-exp .* which mps does not give; available here: sdpa$"),
        ("merge", "cuda", torch.bfloat16, 36, "a head dim that is a multiple of 8, the model's is 36; available"),
        ("flash", "cpu", torch.float32, 80, "a CUDA device, this is cpu; available here: sdpa, merge$"),
        ("flash", "cuda", torch.bfloat16, 80, "the package flash-attn, which is not installed; available"),
        ("flex", "cuda", torch.float32, 80, "bfloat16 or float16, this is torch.float32; available"),
        ("cudnn", "cuda", torch.float32, 80, "bfloat16 or float16 and a head dim .* this is torch.float32 and 80"),
    ],
)  # fmt: skip
def test_what_a_kernel_needs(monkeypatch, name, device, dtype, head_dim, lacks):
    monkeypatch.setattr(attention_kernels.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    with pytest.raises(ValueError, match=f"kernel '{name}' needs {lacks}"):
        choose_kernel(name, torch.device(device), dtype, head_dim)
    assert choose_kernel("auto", torch.device(device), dtype, head_dim)[0] in ("merge", "sdpa")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_is_compiled_for_each_of_many_shapes(monkeypatch):
    """As on CUDA, but for the compiler behind it. Beyond PyTorch's limit of eight it would run uncompiled and make all
    scores; beyond ours `fullgraph` makes that an error."""
    import torch._dynamo

    compiled, choices, compile_ = [], {}, torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    def compile_by_it(function, **chosen):
        choices.update(chosen)
        return compile_(function, backend=backend, **chosen)

    monkeypatch.setattr(torch, "compile", compile_by_it)
    monkeypatch.setattr(flex_attention, "fused", fused.__wrapped__)  # not to be kept with this backend
    on_cuda = flex_attention._flex_attention("cuda")
    monkeypatch.setattr(flex_attention, "_flex_attention", lambda device: on_cuda)
    torch._dynamo.reset()

    def attend(blocks):
        q, k, v = torch.randn(3, 1, 1, blocks, 1, 4, 8)
        with torch.no_grad():
            return KERNELS["flex"](q, clamped_halo(k, v), torch.randn(4, 1, 8))

    for blocks in [*range(1, 12), 3]:
        attend(blocks)
    assert len(compiled) == 11 and choices["fullgraph"]
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_looks_up_the_bias_by_row(monkeypatch):
    """The score of a tile takes one number a query for each relation. One for each pair would be gathered into shared
    memory, and heads of 64 would have no room there."""
    scores = []
    monkeypatch.setattr(
        flex_attention, "_flex_attention", lambda device: lambda q, *_, score_mod, **__: scores.append(score_mod) or q
    )
    q, k, v, relation_embed = (x.float() for x in picture(ORIGINS["inside"]))
    KERNELS["flex"](q, extended_of(k, v, ORIGINS["inside"]), relation_embed)
    queries, keys = torch.arange(6)[:, None], torch.arange(10)[None]
    first = torch.zeros(1, 1, dtype=torch.int64)  # of the batch and of the heads
    graph = make_fx(scores[0])(torch.zeros(6, 10), first, first, queries, keys).graph
    loads = [node.meta["tensor_meta"].shape for node in graph.nodes if node.target is torch.ops.aten.index.Tensor]
    assert loads == [(6, 1)] * 4


def test_flex_needs_blocks_of_whole_tiles():
    cuda = torch.device("cuda")
    assert choose_kernel("flex", cuda, torch.bfloat16, 80, tokens_per_block=256)[0] == "flex"
    with pytest.raises(ValueError, match="'flex' needs blocks of a multiple of 128 tokens, the model's have 64"):
        choose_kernel("flex", cuda, torch.bfloat16, 32, tokens_per_block=64)


def test_gpus_before_ampere_have_no_flash_attention_and_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    cuda = torch.device("cuda")
    assert choose_kernel("auto", cuda, torch.float16, 80)[0] == "merge"
    ampere = "a GPU of compute capability 8.0 or higher"
    reference = f"the reference: merge needs {ampere} for bfloat16, or --dtype float32"
    assert choose_kernel("auto", cuda, torch.bfloat16, 80) == ("sdpa", reference)
    for kernel, dtype, needs in (
        ("merge", torch.bfloat16, f"{ampere} for bfloat16, or --dtype float32"),
        ("cudnn", torch.float16, ampere),
        ("cudnn", torch.float32, "bfloat16 or float16 and a head dim .* this is torch.float32 and 80"),
    ):
        with pytest.raises(ValueError, match=f"'{kernel}' needs {needs}; available here: sdpa"):
            choose_kernel(kernel, cuda, dtype, 80)


@pytest.mark.parametrize(("old", "expected"), [(True, "efficient"), (False, "flash")])
def test_the_stock_kernel_that_a_gpu_has(monkeypatch, called_operators, old, expected):
    """By the name of what is called, with tensors that have no memory."""
    monkeypatch.setattr(stock, "before_ampere", lambda device: old)
    q = torch.empty(2, 3, 64, 16, dtype=torch.float16, device="meta")
    with called_operators:
        out, lse = stock.attend_with_lse(q, q, q)
    assert out.shape == q.shape and lse.shape == q.shape[:-1] and lse.dtype == torch.float32
    assert f"aten._scaled_dot_product_{expected}_attention.default" in called_operators.names


@pytest.mark.parametrize(
    ("head_dim", "dtype", "capability", "chosen"),
    [
        (80, torch.bfloat16, (9, 0), True), (80, torch.float16, (8, 0), True),
        (80, torch.bfloat16, (8, 6), False),  # 99 KiB of shared memory
        (64, torch.bfloat16, (9, 0), True), (48, torch.bfloat16, (9, 0), False), (128, torch.bfloat16, (9, 0), False),
        (80, torch.float32, (9, 0), False),
    ],
)  # fmt: skip
def test_flex_chooses_tiles_where_those_of_pytorch_do_not_suit(monkeypatch, head_dim, dtype, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = types.SimpleNamespace(dtype=dtype, is_cuda=True, device="cuda", shape=(1, 2, 2, 16, 1024, head_dim))
    tiles = flex_attention._tiles(q)
    assert (tiles is not None) == chosen
    if chosen:  # a tile of the mask is whole tiles of the kernel, or FlexAttention refuses
        assert flex_attention.FLEX_TILE % tiles["BLOCK_M"] == flex_attention.FLEX_TILE % tiles["BLOCK_N"] == 0
