"""Token sequences that share a beginning → one packed row in which it is computed once.

    row:        P P P P | a a a | b b b b b | c c
    positions:  0 1 2 3 | 4 5 6 | 4 5 6 7 8 | 4 5

P is the longest prefix all sequences share (a task's instruction); every suffix attends to P and to
itself, never to another suffix. A suffix may end in branches (candidate answers), each of which sees
the prefix, the suffix's trunk and itself. Rows of several tasks, each with its own prefix, can be joined
into one. This module makes the indices; `models.attention` uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any


@dataclass(eq=False)
class Block:
    """How the attention of one prefix with its suffixes is cut: B suffixes, L the longest, p prefix tokens.

    Attributes:
        tokens: the block's part of the row, in tokens: p and all suffixes.
        prefix_length: p.
        places: (tokens - p,) where each suffix token stands in the flattened, padded (B · L).
        mask: (B, 1, L, p + L) bool, True where a suffix position may attend.
        branch: (tokens - p,) the branch of each suffix token, 0 for a trunk.
    """

    tokens: int
    prefix_length: int
    places: Any
    mask: Any
    branch: Any

    @cached_property
    def hidden(self) -> Any:
        """(B, 1, L, p + L) bool, True where a suffix position may not attend."""
        return ~self.mask

    @cached_property
    def hidden_in_prefix(self) -> Any:
        """(1, 1, p, p) bool, True where a prefix position may not attend: after itself."""
        p = self.prefix_length
        return self.mask.new_ones(1, 1, p, p).triu_(1)

    @cached_property
    def places_with_prefix(self) -> Any:
        """(tokens - p,) where each suffix token stands in the flattened (B · (p + L))."""
        longest = self.mask.shape[2]
        width = self.prefix_length + longest
        return self.places // longest * width + self.places % longest + self.prefix_length

    @property
    def slots(self) -> int:
        """Places of tokens, padding included."""
        batch, _, longest, _ = self.mask.shape
        return int(self.prefix_length + batch * longest)

    def to(self, device: Any) -> Block:
        own = (states.to(device) for states in (self.places, self.mask, self.branch))
        return Block(self.tokens, self.prefix_length, *own)


@dataclass
class PackedRow:
    """One forward pass.

    Attributes:
        input_ids, position_ids: (1, T) int64.
        layout: the attention's blocks, one after the other.
        logit_positions: (N,) positions whose logits predict a target.
        targets: (N,) the token each of them predicts.
        owner: (N,) which span (completion) a target belongs to, 0 … number of spans - 1.
    """

    input_ids: Any
    position_ids: Any
    layout: list[Block]
    logit_positions: Any
    targets: Any
    owner: Any

    def to(self, device: Any) -> PackedRow:
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
        """This row of one block without its prefix's tokens, for a model whose cache holds their keys."""
        p = self.layout[0].prefix_length
        return replace(
            self,
            input_ids=self.input_ids[:, p:],
            position_ids=self.position_ids[:, p:],
            logit_positions=self.logit_positions - p,
        )


def join(rows: Sequence[PackedRow]) -> PackedRow:
    """Rows side by side in one, each attending only within itself; spans are numbered on."""
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
    """The number of leading tokens all sequences share, leaving each at least one of its own."""
    limit = min(len(sequence) for sequence in sequences) - 1
    first, last = min(map(list, sequences)), max(map(list, sequences))  # of all, they differ first
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
    """Pack prompts, each with one or more completions (branches), into a row.

    Args:
        prompts: B token sequences, none empty.
        completions: for each prompt its completions; spans are numbered in this order.
        share: compute the common prefix once; False repeats it in every suffix.
        prefix: its length, where it is known (to be shorter than what these prompts share); None looks.
    """
    import numpy as np
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
        trunk = list(prompt[p:])
        end = len(prompt)
        last_trunk = len(ids) + len(trunk) - 1
        ids += trunk
        positions += range(p, end)
        branch = [0] * len(trunk)
        for number, answer in enumerate(answers, start=1):
            # The last token of an answer predicts nothing, so it is a target but never an input.
            logit_positions += [last_trunk, *range(len(ids), len(ids) + len(answer) - 1)]
            targets += answer
            owner += [span] * len(answer)
            ids += answer[:-1]
            positions += range(end, end + len(answer) - 1)
            branch += [number] * (len(answer) - 1)
            span += 1
        branches.append(branch)

    lengths = np.array([len(branch) for branch in branches])
    longest = int(lengths.max())
    inside = np.arange(longest)[None, :] < lengths[:, None]
    places = np.flatnonzero(inside.reshape(-1))
    padded = np.zeros((len(branches), longest), dtype=np.int64)
    for i, branch in enumerate(branches):
        padded[i, : len(branch)] = branch
    own = np.tril(np.ones((longest, longest), dtype=bool))[None]
    if padded.any():
        own = own & ((padded[:, None, :] == 0) | (padded[:, None, :] == padded[:, :, None]))
    own = np.broadcast_to(own & inside[:, None, :], (len(branches), longest, longest))
    # A padded query may look anywhere (its output is dropped), but a row of no True is NaN.
    own = own | (~inside[:, :, None] & (np.arange(longest) == 0)[None, None, :])
    mask = np.concatenate([np.ones((len(branches), longest, p), dtype=bool), own], axis=2)[:, None]

    def tensor(values: Any) -> Any:
        return torch.as_tensor(np.asarray(values))

    return PackedRow(
        input_ids=tensor(ids)[None],
        position_ids=tensor(positions)[None],
        layout=[Block(len(ids), p, tensor(places), tensor(mask), tensor(np.concatenate(branches)))],
        logit_positions=tensor(logit_positions),
        targets=tensor(targets),
        owner=tensor(owner),
    )


def rows_of(lengths: Sequence[int], tasks: Sequence[str], row_size: int, row_tokens: int) -> list[list[int]]:
    """Split one optimizer step into rows of one task, alike in length.

    Args:
        lengths: tokens of each example, the shared prefix included.
        row_size: the most examples in a row.
        row_tokens: the most tokens in a row; a longer example has a row of its own.
    """
    rows: list[list[int]] = []
    for task in dict.fromkeys(tasks):
        row: list[int] = []
        tokens = 0
        for i in sorted((i for i, t in enumerate(tasks) if t == task), key=lambda i: (lengths[i], i)):
            if row and (len(row) == row_size or tokens + lengths[i] > row_tokens):
                rows.append(row)
                row, tokens = [], 0
            row.append(i)
            tokens += lengths[i]
        rows.append(row)
    return rows
