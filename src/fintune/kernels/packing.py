"""Token sequences that share a beginning → one packed row in which it is computed once.

Two prompts with a shared prefix P; the first has two completions (x y and z w e), the second one (u v):

    place:      0 1 2 | 3 4 5 6 7 | 8 9 10 11
    row:        P P P | a a x z w | b b b  u
    position:   0 1 2 | 3 4 5 5 6 | 3 4 5  6
    branch:           | 0 0 1 2 2 | 0 0 0  1

    target:           x y z w e u  v
    read at place:    4 5 4 6 7 10 11
    owner (span):     0 0 1 1 1 2  2

The row is a prefix and a suffix for each prompt. A suffix is its prompt's own tokens, the trunk (branch 0),
and then its completions, the branches (1, 2, …). A suffix attends to the prefix and to itself, never to
another suffix; a branch to the prefix, to its trunk and to itself. The last token of a completion predicts
nothing, so it is a target but no input. Rows with different prefixes can be joined into one.

This module makes the indices; `attention` and `likelihood` use them. The plain reference of a row is
`likelihood.log_likelihoods_plain`, a forward pass for each completion.

Shape suffixes of names: T tokens of a row, P of its prefix, B suffixes, L tokens of the longest suffix, N
tokens of all suffixes (T − P).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Block:
    """How the attention of one prefix with its suffixes is cut.

    Attention works on the suffixes padded to (B, L); `places` leads from the row's tokens there and back.

    Attributes:
        tokens: T of this block: its part of the row.
        prefix_length: P, 0 where nothing is shared.
        places: (N,) int64, for each suffix token b · L + i: it is token i of suffix b.
        mask: (B, 1, L, P + L) bool, True where token i of suffix b may attend: to the prefix's tokens (the
            first P columns) and to the suffix's own (the last L). Padding may attend to something, so that
            its softmax is finite; nothing attends to padding.
        branch: (N,) int64, the branch of each suffix token, 0 for a trunk.
    """

    tokens: int
    prefix_length: int
    places: Tensor
    mask: Tensor
    branch: Tensor

    @property
    def longest(self) -> int:
        """L."""
        return int(self.mask.shape[2])

    @cached_property
    def hidden(self) -> Tensor:
        """(B, 1, L, P + L) bool, True where a suffix token may not attend."""
        return ~self.mask

    @cached_property
    def hidden_in_prefix(self) -> Tensor:
        """(1, 1, P, P) bool, True where a prefix token may not attend: after itself."""
        return self.mask.new_ones(1, 1, self.prefix_length, self.prefix_length).triu_(1)

    @cached_property
    def places_with_prefix(self) -> Tensor:
        """(N,) int64: `places` where each suffix has the prefix before it, b · (P + L) + P + i."""
        suffix, token = self.places // self.longest, self.places % self.longest
        return suffix * (self.prefix_length + self.longest) + self.prefix_length + token

    @property
    def slots(self) -> int:
        """P + B · L: the places of tokens, padding included."""
        return self.prefix_length + int(self.mask.shape[0]) * self.longest

    def padded(self, states_NHD: Tensor) -> Tensor:
        """Suffix tokens as they stand in the row → (B, L, H, D), 0 at padding."""
        batch, longest = self.mask.shape[0], self.longest
        flat = states_NHD.new_zeros(batch * longest, *states_NHD.shape[1:])
        return flat.index_copy_(0, self.places, states_NHD).unflatten(0, (batch, longest))

    def to(self, device: object) -> Block:
        """The same block on another device."""
        own = (states.to(device) for states in (self.places, self.mask, self.branch))
        return Block(self.tokens, self.prefix_length, *own)


def spans_of(layout: Iterable[Block]) -> Iterator[tuple[int, int, int, Block]]:
    """(begin, end of the prefix, end, block) of each block, as places in the row."""
    begin = 0
    for block in layout:
        yield begin, begin + block.prefix_length, begin + block.tokens, block
        begin += block.tokens


@dataclass
class PackedRow:
    """One forward pass; the module's docstring draws one.

    Attributes:
        input_ids, position_ids: (1, T) int64. A position is the token's place in its own sequence.
        layout: the attention's blocks in the order of the row; their tokens add up to T.
        logit_positions: (targets,) int64, the place in the row whose logits predict each target.
        targets: (targets,) int64, the tokens to be predicted: the completions, one after the other.
        owner: (targets,) int64, the span (completion) of each target, 0 … spans − 1, in ascending order.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: list[Block]
    logit_positions: Tensor
    targets: Tensor
    owner: Tensor

    def to(self, device: object) -> PackedRow:
        """The same row on another device."""
        return PackedRow(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            layout=[block.to(device) for block in self.layout],
            logit_positions=self.logit_positions.to(device),
            targets=self.targets.to(device),
            owner=self.owner.to(device),
        )

    @property
    def spans(self) -> int:
        """The number of completions."""
        return int(self.owner.max()) + 1

    def after_prefix(self) -> PackedRow:
        """This row of one block without its prefix's tokens, for a model whose cache holds their keys.

        Positions and layout still count the prefix; only the places in the row move by P.
        """
        p = self.layout[0].prefix_length
        return replace(
            self,
            input_ids=self.input_ids[:, p:],
            position_ids=self.position_ids[:, p:],
            logit_positions=self.logit_positions - p,
        )


def join(rows: Sequence[PackedRow]) -> PackedRow:
    """Rows side by side in one: each keeps its own blocks, so it attends within itself alone.

    Spans are numbered on: those of the second row follow those of the first.
    """
    import torch

    if len(rows) == 1:
        return rows[0]
    token = span = 0
    logit_positions, owners = [], []
    for row in rows:
        logit_positions.append(row.logit_positions + token)
        owners.append(row.owner + span)
        token += row.input_ids.shape[1]
        span += row.spans
    return PackedRow(
        input_ids=torch.cat([row.input_ids for row in rows], dim=1),
        position_ids=torch.cat([row.position_ids for row in rows], dim=1),
        layout=[block for row in rows for block in row.layout],
        logit_positions=torch.cat(logit_positions),
        targets=torch.cat([row.targets for row in rows]),
        owner=torch.cat(owners),
    )


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences share, leaving each at least one of its own."""
    limit = min(len(sequence) for sequence in sequences) - 1
    # In lexical order, what the first and the last share is shared by all between them.
    first, last = min(map(list, sequences)), max(map(list, sequences))
    for i in range(limit):
        if first[i] != last[i]:
            return i
    return max(limit, 0)


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    share: bool = True,
    prefix: int | None = None,
) -> PackedRow:
    """Pack prompts, each with one or more completions (branches), into a row of one block.

    Args:
        prompts: B token sequences, none empty.
        completions: for each prompt its completions, none empty; spans are numbered in this order.
        share: compute the common prefix once; False repeats it in every suffix.
        prefix: P, where it is known: tokens that all prompts share, fewer than the shortest has. None looks.
    """
    import torch

    p = prefix if prefix is not None else 0
    if prefix is None and share and len(prompts) > 1:
        p = common_prefix_length(prompts)
    ids: list[int] = list(prompts[0][:p])
    positions = list(range(p))
    logit_positions: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    branches: list[list[int]] = []
    span = 0
    for prompt, answers in zip(prompts, completions, strict=True):
        ids += prompt[p:]
        positions += range(p, len(prompt))
        branch = [0] * (len(prompt) - p)
        last_of_trunk = len(ids) - 1
        for number, answer in enumerate(answers, start=1):
            # The trunk's last token predicts a branch's first token, whichever branch stands before it in the
            # row; each of the branch's own tokens predicts the next.
            logit_positions += [last_of_trunk, *range(len(ids), len(ids) + len(answer) - 1)]
            targets += answer
            owner += [span] * len(answer)
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + len(answer) - 1)
            branch += [number] * (len(answer) - 1)
            span += 1
        branches.append(branch)
    return PackedRow(
        input_ids=torch.tensor(ids)[None],
        position_ids=torch.tensor(positions)[None],
        layout=[_block(branches, p)],
        logit_positions=torch.tensor(logit_positions),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
    )


def _block(branches: Sequence[Sequence[int]], p: int) -> Block:
    """The block of a prefix of p tokens and suffixes of which the branch of each token is given."""
    import numpy as np
    import torch

    lengths = np.array([len(branch) for branch in branches])
    longest = int(lengths.max())
    inside_BL = np.arange(longest)[None, :] < lengths[:, None]
    branch_BL = np.zeros((len(branches), longest), dtype=np.int64)
    branch_BL[inside_BL] = branch_N = np.concatenate(branches)  # both in the order of the row
    # own_BLL[b, i, j]: may token i of suffix b attend to its token j? If j is not after i …
    own_BLL = np.tril(np.ones((longest, longest), dtype=bool))[None]
    if branch_N.any():  # … and j is in the trunk or in i's own branch …
        same_branch = branch_BL[:, None, :] == branch_BL[:, :, None]
        own_BLL = own_BLL & ((branch_BL[:, None, :] == 0) | same_branch)
    own_BLL = own_BLL & inside_BL[:, None, :]  # … and j is no padding.
    # Padding may attend to token 0: its output is dropped, but a softmax over nothing would be NaN, and NaN
    # times a gradient of 0 is NaN.
    own_BLL[:, :, 0] |= ~inside_BL
    to_prefix = np.ones((len(branches), longest, p), dtype=bool)
    return Block(
        tokens=p + len(branch_N),
        prefix_length=p,
        places=torch.from_numpy(np.flatnonzero(inside_BL)),  # of (B, L), flattened: b · L + i
        mask=torch.from_numpy(np.concatenate([to_prefix, own_BLL], axis=2)[:, None]),
        branch=torch.from_numpy(branch_N.astype(np.int64)),
    )


def rows_of(lengths: Sequence[int], groups: Sequence[str], row_size: int, row_tokens: int) -> list[list[int]]:
    """Split one optimizer step into rows of one group, alike in length; each row lists its examples' numbers.

    Args:
        lengths: tokens of each example, the shared prefix included.
        groups: for each example what it shares a prefix with; any names, compared alone.
        row_size: the most examples in a row.
        row_tokens: the most tokens in a row; a longer example has a row of its own.
    """
    rows: list[list[int]] = []
    for group in dict.fromkeys(groups):  # in the order of their first example
        row: list[int] = []
        tokens = 0
        # The shortest first: neighbours are alike in length, so that little of (B, L) is padding.
        for i in sorted((i for i, own in enumerate(groups) if own == group), key=lambda i: (lengths[i], i)):
            if row and (len(row) == row_size or tokens + lengths[i] > row_tokens):
                rows.append(row)
                row, tokens = [], 0
            row.append(i)
            tokens += lengths[i]
        rows.append(row)
    return rows
