"""FlexAttention over blocks, run uncompiled on a CPU, against masked softmax and against the whole mask."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from fintune.kernels import attention, flex
from fintune.kernels.packing import pack


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    prefix=st.integers(0, 12),
    tile=st.sampled_from([2, 4, 8]),
)
def test_every_tile_with_an_allowed_pair_is_visited_and_no_other(lengths, prefix, tile):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    (block,) = pack(prompts, [[[5]] for _ in prompts]).layout
    with patch.object(flex, "TILE", tile):
        ours = flex.block_mask(block).to_dense()
    size = (1, 1, block.tokens, block.tokens)
    plain = flex_attention.create_block_mask(flex.allowed(block), *size, device="cpu", BLOCK_SIZE=tile)
    assert torch.equal(ours.bool(), plain.to_dense().bool())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("lengths", "prefix"), [([3], 0), ([1, 4, 2], 5), ([2, 2], 0)])
def test_flex_attention_by_blocks_is_attention_under_the_mask_of_the_whole_row(lengths, prefix):
    prompts = [[1] * prefix + [10 + i] + [2] * n for i, n in enumerate(lengths)]
    row = pack(prompts, [[[5, 6], [7, 8, 9]] for _ in prompts])
    tokens = row.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]

    def by_flex(*states):
        rows = (state[0].transpose(0, 1) for state in states)
        return attention.flex_blocks(*rows, row.layout, 8**-0.5)[None]

    results = []
    for compute in (
        lambda *qkv: attention.attention_plain(*qkv, attention.allowed_plain(row.layout)),
        by_flex,
    ):
        # PyTorch's uncompiled FlexAttention has gradients on a CPU, but refuses to give them.
        with patch.object(flex_attention, "_validate_device"):
            out = compute(*states)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), states)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)
