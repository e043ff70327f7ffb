"""FlexAttention over blocks, run uncompiled on a CPU, against masked softmax and against the whole mask."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from fintune.kernels import flex
from fintune.kernels.attention_plain import allowed_plain, attention_plain
from fintune.kernels.packing import join, pack
from fintune.kernels.rule import Rule


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    prefix=st.integers(0, 30),
    tile=st.sampled_from([2, 4, 8]),
    window=st.one_of(st.none(), st.integers(1, 40)),
    branches=st.integers(1, 2),
)
def test_no_tile_with_an_allowed_pair_is_left_out(lengths, prefix, tile, window, branches):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [[[5, 6], [7, 8, 9]][:branches] for _ in prompts])
    layout = join([row, pack([[3, 4]], [[[6, 7]]]), row]).layout
    total = sum(block.tokens for block in layout)
    with patch.object(flex, "TILE", tile):
        mask = flex.block_mask(layout, window)
    reaches = flex.allowed(layout, window)
    plain = flex_attention.create_mask(reaches, 1, 1, total, total, device="cpu")[0, 0]
    assert torch.equal(plain, allowed_plain(layout, window))
    held = flex_attention.create_block_mask(reaches, 1, 1, total, total, device="cpu", BLOCK_SIZE=tile)
    partial, full = (
        torch.zeros(-(-total // tile), -(-total // tile), dtype=torch.bool),
        torch.zeros(-(-total // tile), -(-total // tile), dtype=torch.bool),
    )
    for dense, counts, order in (
        (partial, mask.kv_num_blocks, mask.kv_indices),
        (full, mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        for i, count in enumerate(counts[0, 0].tolist()):
            dense[i, order[0, 0, i, :count]] = True
    assert not (partial & full).any()
    assert not (held.to_dense()[0, 0].bool() & ~(partial | full)).any()
    if window is None and branches == 1:
        assert torch.equal(held.to_dense()[0, 0].bool(), partial | full)  # and no tile is visited for nothing
    for i, j in full.nonzero().tolist():
        assert plain[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("changed", [{}, {"cap": 0.5, "sinks_H": torch.linspace(-2, 2, 4).double()}])
@pytest.mark.parametrize(("lengths", "prefix"), [([3], 0), ([1, 4, 2], 5), ([2, 2], 0), ([150], 140)])
def test_flex_attention_is_attention_under_the_mask_of_the_whole_row(lengths, prefix, window, changed):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [[[5, 6], [7, 8, 9]] for _ in prompts], prefix=prefix)
    row = join([row, pack([[3, 4]], [[[6, 7]]])])
    tokens, rule = row.input_ids.shape[1], Rule(8**-0.5, window, **changed)
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]

    def by_flex(*states):
        rows = (state[0].transpose(0, 1) for state in states)
        return flex.attend(*rows, row.layout, rule)[None]

    results = []
    for compute in (
        lambda *qkv: attention_plain(*qkv, allowed_plain(row.layout, window), rule),
        by_flex,
    ):
        # PyTorch's uncompiled FlexAttention has gradients on a CPU, but refuses to give them.
        with patch.object(flex_attention, "_validate_device"):
            out = compute(*states)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), states)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)
