"""Pack token sequences with a common prefix into one row that computes the prefix once.

Two prompts with a shared prefix P; the first has two completions (x y and z w e), the second one (u v):

    place:      0 1 2 | 3 4 5 6 7 | 8 9 10 11
    row:        P P P | a a x z w | b b b  u
    position:   0 1 2 | 3 4 5 5 6 | 3 4 5  6
    branch:           | 0 0 1 2 2 | 0 0 0  1

    target:           x y z w e u  v
    read at place:    4 5 4 6 7 10 11
    owner (span):     0 0 1 1 1 2  2

The row is a prefix and one suffix per prompt. A suffix is its prompt's own tokens, the trunk (branch 0),
followed by its completions, the branches (1, 2, …). A suffix attends to the prefix and to itself, never to
another suffix; a branch attends to the prefix, to its trunk and to itself. A completion's last token predicts
nothing, so it is a target but not an input. Rows with different prefixes can be joined into one.

This module computes the indices; `attention` and `likelihood` use them. The plain reference of a row is
`likelihood.log_likelihoods_plain`, one forward pass per completion.

Shape suffixes of names: T tokens of a row, P of its prefix, B suffixes, L tokens of the longest suffix, N
tokens of all suffixes (T − P).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ALIGNED = 16
"""Bytes: the alignment of tensors in `moved`."""
WHOLE = 1 << 24
"""Largest mask in bytes that is cached whole; parts of a larger one are rebuilt for each layer."""


@dataclass(eq=False)
class Block:
    """The attention structure of one prefix with its suffixes.

    Stores numbers per token. Kernels that need a mask, which has one entry per pair, request the part that
    they compute. Attention works on the suffixes padded to (B, L); `places` maps the row's tokens there and
    back.

    Attributes:
        prefix_length: P, 0 if nothing is shared.
        lengths: B numbers, the tokens of each suffix, N in all.
        trunks: B numbers, the length of each suffix's trunk, which comes first.
        reach: one more than the highest position: a window of this many tokens hides nothing.
        places: (N,) int64, for each suffix token b · L + i: it is token i of suffix b.
        branch: (N,) int64, the branch of each suffix token, 0 for a trunk.
        positions: (N,) int64, the position of each suffix token in its own sequence.
    """

    prefix_length: int
    lengths: tuple[int, ...]
    trunks: tuple[int, ...]
    reach: int
    places: Tensor
    branch: Tensor
    positions: Tensor

    @property
    def tokens(self) -> int:
        """P + N: this block's part of the row."""
        return self.prefix_length + sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """L."""
        return max(self.lengths)

    @property
    def slots(self) -> int:
        """P + B · L: the tokens, padding included."""
        return self.prefix_length + len(self.lengths) * self.longest

    def mask(self, window: int | None = None, in_prefix: bool = False) -> Mask:
        """What the suffixes' tokens, or the prefix's own, may not attend to; arguments as in `Mask`."""
        reach = self.prefix_length if in_prefix else self.reach
        return Mask(self, window if window is not None and window < reach else None, in_prefix)

    @cached_property
    def wholes(self) -> dict[tuple[int | None, bool], Tensor]:
        """The requested masks' `Mask.whole`. A `Mask` cached here would refer to its block, and this cycle
        would stay in memory until garbage collection."""
        return {}

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """(B, L) branches and positions of the suffixes' tokens, −1 and 0 at padding."""
        shape = (len(self.lengths), self.longest)
        branch, positions = self.branch.new_full(shape, -1), self.positions.new_zeros(shape)
        branch.view(-1)[self.places], positions.view(-1)[self.places] = self.branch, self.positions
        return branch, positions

    @cached_property
    def places_with_prefix(self) -> Tensor:
        """(N,) int64: `places` if each suffix has the prefix before it, b · (P + L) + P + i."""
        suffix, token = self.places // self.longest, self.places % self.longest
        return suffix * (self.prefix_length + self.longest) + self.prefix_length + token

    def padded(self, states_NHD: Tensor) -> Tensor:
        """Suffix tokens in row order → (B, L, H, D), 0 at padding."""
        batch, longest = len(self.lengths), self.longest
        flat = states_NHD.new_zeros(batch * longest, *states_NHD.shape[1:])
        return flat.index_copy_(0, self.places, states_NHD).unflatten(0, (batch, longest))


@dataclass(eq=False)
class Mask:
    """Which pairs of a block's tokens attention excludes, computed in parts.

    Attributes:
        window: a token sees itself and the window − 1 tokens before it in its sequence; None sees all.
        in_prefix: queries and keys are the prefix's tokens; else queries are the suffixes' tokens, and keys
            the prefix's followed by the suffix's own.
    """

    block: Block
    window: int | None
    in_prefix: bool

    @property
    def queries(self) -> int:
        """The number of queries: the longest suffix's, or the prefix's."""
        return self.block.prefix_length if self.in_prefix else self.block.longest

    @property
    def before(self) -> int:
        """The number of keys before the queries' own."""
        return 0 if self.in_prefix else self.block.prefix_length

    @property
    def whole(self) -> Tensor:
        """`hidden` for all queries and keys, built once for all layers."""
        key = (self.window, self.in_prefix)
        if key not in self.block.wholes:
            self.block.wholes[key] = self._made(0, self.queries)
        return self.block.wholes[key]

    def hidden(self, begin: int, end: int) -> Tensor:
        """(B, 1, end − begin, before + end) bool, True where a query may not attend.

        Rows are the queries begin … end of each suffix, columns the keys before them and their own up to
        `end`. Padding attends at least to the trunk's first token, so its softmax is finite; nothing attends
        to padding.
        """
        texts = 1 if self.in_prefix else len(self.block.lengths)
        if texts * self.queries * (self.before + self.queries) <= WHOLE:
            return self.whole[:, :, begin:end, : self.before + end]
        return self._made(begin, end)

    def _made(self, begin: int, end: int) -> Tensor:
        import torch

        after = self.block.places.new_ones(end - begin, end, dtype=torch.bool).triu_(begin + 1)
        if self.in_prefix:
            if self.window is not None:
                after |= torch.ones_like(after).tril_(begin - self.window)
            return after[None, None]
        branch_BL, positions_BL = self.block.grid
        queries, keys = slice(begin, end), slice(0, end)
        # Other branches' tokens are hidden, trunks' (0) never. Padding's branch is −1, which no token has.
        own = branch_BL[:, None, keys]
        hidden = (own != 0) & (own != branch_BL[:, queries, None]) | after
        to_prefix = hidden.new_zeros(len(hidden), end - begin, self.before)
        if self.window is not None:
            positions = positions_BL[:, queries, None]
            hidden |= positions - positions_BL[:, None, keys] >= self.window
            to_prefix |= positions - torch.arange(self.before, device=hidden.device) >= self.window
        return torch.cat([to_prefix, hidden], dim=2)[:, None]


def spans_of(layout: Iterable[Block]) -> Iterator[tuple[int, int, int, Block]]:
    """(begin, end of the prefix, end, block) of each block, as places in the row."""
    begin = 0
    for block in layout:
        yield begin, begin + block.prefix_length, begin + block.tokens, block
        begin += block.tokens


@dataclass
class PackedRow:
    """One forward pass; the module's docstring has a diagram.

    Attributes:
        input_ids, position_ids: (1, T) int64. A position is the token's place in its own sequence.
        layout: the attention's blocks in row order; their tokens add up to T.
        logit_positions: (targets,) int64, the place in the row whose logits predict each target.
        targets: (targets,) int64, the tokens to predict: the completions, one after the other.
        owner: (targets,) int64, each target's span (completion), 0 … spans − 1, in ascending order.
        spans: the number of completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: list[Block]
    logit_positions: Tensor
    targets: Tensor
    owner: Tensor
    spans: int

    def to(self, device: Any) -> PackedRow:
        """This row on another device, in one copy."""
        (row,) = moved([self], device)
        return row

    def after_prefix(self) -> PackedRow:
        """This one-block row without its prefix's tokens, for a model whose cache holds their keys.

        Positions and layout still count the prefix; only the places in the row shift by P.
        """
        p = self.layout[0].prefix_length
        return replace(
            self,
            input_ids=self.input_ids[:, p:],
            position_ids=self.position_ids[:, p:],
            logit_positions=self.logit_positions - p,
        )


def join(rows: Sequence[PackedRow]) -> PackedRow:
    """Join rows into one: each keeps its own blocks, so it attends only within itself.

    Span numbers continue: those of the second row follow those of the first.
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
        spans=span,
    )


def padded(row: PackedRow) -> tuple[Tensor, Tensor]:
    """The row's completions as a right-padded batch, each after its prompt, for models without packed rows.

    Computed on the row's device, but with shapes from host numbers.

    Returns:
        (S, L) the tokens of each span, and (N,) the place among its S · L that predicts each target. Padding
        comes after everything that is predicted, so a causal model needs no mask.
    """
    import torch

    device, longest = row.input_ids.device, max(block.reach for block in row.layout)
    block_of, suffix_of = [], []  # of each token; −1 is a prefix, which belongs to every suffix
    for number, block in enumerate(row.layout):
        block_of += [number] * block.tokens
        suffix_of += [-1] * block.prefix_length
        for suffix, length in enumerate(block.lengths):
            suffix_of += [suffix] * length
    block_T, suffix_T = torch.tensor([block_of, suffix_of], device=device)
    branch_T = torch.cat(
        [part for b in row.layout for part in (b.branch.new_zeros(b.prefix_length), b.branch)]
    )
    # A span's last target is predicted by its own last token, or by its trunk's if it has no other token.
    spans = torch.arange(row.spans, device=device)
    last_S = row.logit_positions[torch.searchsorted(row.owner, spans, right=True) - 1]
    own_ST = (block_T == block_T[last_S, None]) & ((suffix_T == -1) | (suffix_T == suffix_T[last_S, None]))
    own_ST &= (branch_T == 0) | (branch_T == branch_T[last_S, None])
    # Each token goes to its position; tokens of others go to one extra column, which is dropped.
    columns_ST = torch.where(own_ST, row.position_ids, longest)
    ids_SL = row.input_ids.new_zeros(row.spans, longest + 1)
    ids_SL = ids_SL.scatter_(1, columns_ST, row.input_ids.expand(row.spans, -1))[:, :longest]
    return ids_SL, row.owner * longest + row.position_ids[0, row.logit_positions]


def moved(things: Sequence[Any], device: Any, gather: bool = False) -> list[Any]:
    """Move dataclasses of tensors, nested in lists and dataclasses, to another device.

    All tensors move in one copy, to a GPU from pinned memory and asynchronously: a step has hundreds of small
    ones, and separate copies would cost more than their bytes.

    Args:
        gather: put them into one piece of memory even if all are already on that device, so that another
            process maps them once.
    """
    import torch

    device = torch.device(device)
    tensors: list[Tensor] = []
    _each_tensor(things, tensors.append)
    if not gather and all(tensor.device == device for tensor in tensors):
        return list(things)
    raw = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    gaps = [-len(part) % ALIGNED for part in raw]
    pieces = [piece for part, gap in zip(raw, gaps, strict=True) for piece in (part, part.new_empty(gap))]
    buffer = torch.cat(pieces)
    if device.type == "cuda" and buffer.device.type == "cpu":
        buffer = buffer.pin_memory()
    arrived = iter(buffer.to(device, non_blocking=True).split([len(piece) for piece in pieces])[::2])
    return [
        _each_tensor(thing, lambda old: next(arrived).view(old.dtype).view(old.shape)) for thing in things
    ]


def _each_tensor(thing: Any, change: Callable[[Tensor], Any]) -> Any:
    """The thing with each of its tensors changed, in a fixed order."""
    import torch

    if isinstance(thing, torch.Tensor):
        return change(thing)
    if isinstance(thing, list | tuple) and not hasattr(thing, "_fields"):
        return type(thing)(_each_tensor(each, change) for each in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        new = {field.name: _each_tensor(getattr(thing, field.name), change) for field in fields(thing)}
        return replace(thing, **new)
    return thing


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """The number of leading tokens that all sequences share, leaving each at least one of its own."""
    limit = min(len(sequence) for sequence in sequences) - 1
    # In lexical order, the first and the last share the least, so their common prefix is common to all.
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
        completions: each prompt's completions, none empty; spans are numbered in this order.
        share: compute the common prefix once; False repeats it in every suffix.
        prefix: P, if known: tokens that all prompts share, fewer than the shortest has. None computes it.
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
    branch: list[int] = []
    lengths: list[int] = []
    span = 0
    for prompt, answers in zip(prompts, completions, strict=True):
        begin = len(ids)
        ids += prompt[p:]
        positions += range(p, len(prompt))
        branch += [0] * (len(prompt) - p)
        last_of_trunk = len(ids) - 1
        for number, answer in enumerate(answers, start=1):
            # The trunk's last token predicts a branch's first token, whatever the row has in between; each of
            # the branch's own tokens predicts the next.
            logit_positions += [last_of_trunk, *range(len(ids), len(ids) + len(answer) - 1)]
            targets += answer
            owner += [span] * len(answer)
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + len(answer) - 1)
            branch += [number] * (len(answer) - 1)
            span += 1
        lengths.append(len(ids) - begin)
    counts, longest = torch.tensor(lengths), max(lengths)
    own_positions = torch.tensor(positions)
    # Token i of suffix b is at begins[b] + i among the N, and at b · L + i among the padded.
    begins, suffixes = counts.cumsum(0) - counts, torch.arange(len(lengths))
    places = torch.arange(len(branch)) + (suffixes * longest - begins).repeat_interleave(counts)
    block = Block(
        prefix_length=p,
        lengths=tuple(lengths),
        trunks=tuple(len(prompt) - p for prompt in prompts),
        reach=max(positions) + 1,
        places=places,
        branch=torch.tensor(branch),
        positions=own_positions[p:],
    )
    return PackedRow(
        input_ids=torch.tensor(ids)[None],
        position_ids=own_positions[None],
        layout=[block],
        logit_positions=torch.tensor(logit_positions),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
        spans=span,
    )


def parts(sizes: Sequence[int], limit: int, most: int | None = None) -> list[list[int]]:
    """Group consecutive indices so that sizes sum to at most `limit` (a single one may be larger), in groups
    of at most `most`."""
    found: list[list[int]] = []
    total = 0
    for i, size in enumerate(sizes):
        if not found or total + size > limit or len(found[-1]) == most:
            found.append([])
            total = 0
        found[-1].append(i)
        total += size
    return found


def rows_of(lengths: Sequence[int], groups: Sequence[str], row_size: int, row_tokens: int) -> list[list[int]]:
    """Split one optimizer step into rows of one group and similar lengths; a row lists its examples' indices.

    Args:
        lengths: tokens of each example, the shared prefix included.
        groups: for each example, a name that is equal for examples with a shared prefix.
        row_size: the most examples in a row.
        row_tokens: the most tokens in a row; a longer example gets its own row.
    """
    rows: list[list[int]] = []
    for group in dict.fromkeys(groups):  # in the order of their first example
        # Shortest first: neighbours have similar lengths, so that little of (B, L) is padding.
        order = sorted((i for i, own in enumerate(groups) if own == group), key=lambda i: (lengths[i], i))
        cut = parts([lengths[i] for i in order], row_tokens, row_size)
        rows += [[order[place] for place in part] for part in cut]
    return rows
