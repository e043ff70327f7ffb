"""Find out how several texts can go through a base in one pass, by letting it compute a few tokens.

A packed row is exact if a model's tokens interact only through attention, and if the kernels compute that
attention. Both are tested: in every layer, where Transformers calls the attention, and in the output.
Otherwise texts are padded to a batch, provided that this does not change a text's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fintune.errors import first_line
from fintune.kernels.attention_plain import allowed_plain, attention_plain
from fintune.kernels.forward import evaluated, row_inputs
from fintune.kernels.packing import PackedRow, pack
from fintune.kernels.rule import Rule

NAME = "fintune_probe"
KNOWN = {"dropout", "is_causal", "position_ids", "output_attentions", "use_cache", "cache_position"}
"""Attention arguments, besides those in `Rule`, that change nothing in a packed row."""
FAR = {True: 1e-2, False: 5e-2}
"""The relative difference between logits from which it is no longer rounding; by whether the model computes
in 32 bits."""


@dataclass(frozen=True)
class Support:
    """How several texts go through a base in one pass; true if rows can be packed.

    Attributes:
        way: as a packed row, as a padded batch, or not at all.
        reason: why rows cannot be packed, or batches padded; empty if rows can be packed.
    """

    way: Literal["packed", "padded", "single"]
    reason: str = ""

    def __bool__(self) -> bool:
        return self.way == "packed"

    @property
    def several(self) -> bool:
        """Whether a pass can hold several texts, and several completions of a prompt."""
        return self.way != "single"

    def __str__(self) -> str:
        """One line for the user; empty if rows are packed."""
        how = {
            "packed": "",
            "padded": "texts go through as padded batches, not as packed rows: ",
            "single": "one text goes through at a time: ",
        }
        return how[self.way] + self.reason


class _Unable(Exception):
    """Why a row cannot be packed."""


def register(name: str, forward: Callable[..., Any], mask: Callable[..., Any]) -> str:
    """Register an attention function and its mask function with Transformers under a name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, mask)
    return name


def support(model: Any) -> Support:
    """What the model supports; leaves its attention as it was."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    probe = _Probe()
    try:
        model.set_attn_implementation(register(NAME, probe.attend, probe.mask))
        if config._attn_implementation != NAME:
            raise _Unable("Transformers cannot exchange its attention")
        _check_packed(model, probe)
        return Support("packed")
    except _Unable as unable:
        reason = str(unable)
    finally:
        if config._attn_implementation != own:
            model.set_attn_implementation(own)
    if model.device.type == "meta" or _same_when_padded(model):
        return Support("padded", reason)
    return Support("single", f"{reason}; and in a padded batch, texts do not give what each gives alone")


def length_warning(model: Any, longest: int) -> str:
    """One line for the user if texts of up to `longest` tokens change the positions of others in their pass;
    empty if not.

    Rotary embeddings of the kinds longrope (Phi-3 with 128k tokens) and dynamic have other frequencies
    from some length on, and Transformers computes those of the longest text for all texts of a pass.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):  # or one a layer type
        if each.get("rope_type") not in ("longrope", "dynamic"):
            continue
        usual = each.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest > usual:
            return (
                f"a text of more than {usual:,} tokens changes the positions of shorter ones in its row "
                f"({each['rope_type']}): set training.max_length to {usual:,} or less to rule that out"
            )
    return ""


def _check_packed(model: Any, probe: _Probe) -> None:
    """Compare two rows with the same last completion: both must give the numbers that it gives alone."""
    ids = _ids(model, 24)
    own, answer = ids[5:8], ids[8:11]
    rows = []
    for others in (ids[11:17], ids[17:23]):
        texts = [ids[:2] + others[:3], ids[:2] + own], [[others[3:]], [others[3:], answer]]
        with torch.device("cpu"):  # whatever the caller's default is
            row = pack(*texts)
        row = row.to(model.device)
        rows.append(_last_logits(model, row, probe))
        if model.device.type == "meta":  # shapes only, no values
            return
    probe.packed = False
    plain = evaluated(model, input_ids=_tensor(model, [[*ids[:2], *own, *answer]])).logits[0, 4:-1]
    probe.check()
    if _distance(model, *rows).max() > 1 or _distance(model, rows[0], plain).median() > 1:
        raise _Unable("its tokens reach those of other texts in a row by more than attention")


def _last_logits(model: Any, row: PackedRow, probe: _Probe) -> Tensor:
    """The logits that predict the row's last three targets."""
    config = model.config.get_text_config()
    layers, kinds = config.num_hidden_layers, set(getattr(config, "layer_types", None) or ())
    other = ", ".join(sorted(kinds - {"full_attention", "sliding_attention"}))
    laid_out = model.device.type == "meta"
    probe.calls = 0
    if laid_out and other:
        raise _Unable(f"not all of its layers are plain attention ({other})")
    try:
        logits = evaluated(model, **row_inputs(row)).logits[0]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models raise anything for unknown arguments
        probe.check()
        if laid_out and not getattr(model, "_is_stateful", False):
            return row.targets  # a model that reads values, such as a mixture of experts: assume it works
        what = first_line(error)
        raise _Unable(f"its layers cannot compute a packed row ({what})") from None
    probe.check()
    if probe.calls < layers:
        names = f" ({other})" if other else ""
        raise _Unable(f"{layers - probe.calls} of its {layers} layers mix tokens without attention{names}")
    return logits[-3:]


def _same_when_padded(model: Any) -> bool:
    """Whether a text gets the same numbers alone and beside a longer one."""
    ids = _ids(model, 12)
    short, long = ids[:4], ids[4:]
    alone = evaluated(model, input_ids=_tensor(model, [short])).logits[0]
    batch = _tensor(model, [short + [0] * (len(long) - len(short)), long])
    return bool(_distance(model, evaluated(model, input_ids=batch).logits[0, : len(short)], alone).max() <= 1)


def _ids(model: Any, count: int) -> list[int]:
    """Different tokens, none of the special ones at the vocabulary's beginning and end."""
    size = model.config.get_text_config().vocab_size
    return [(size // 5 + i) % size for i in range(count)]


def _tensor(model: Any, ids: list[list[int]]) -> Tensor:
    return torch.tensor(ids, device=model.device)


def _distance(model: Any, ours: Tensor, theirs: Tensor) -> Tensor:
    """(N,) the distance between logits (N, V); more than 1 is not rounding."""
    exact = model.dtype.itemsize >= 4 and not getattr(model, "is_quantized", False)
    ours, theirs = ours.float(), theirs.float()
    size = (theirs - theirs.mean(dim=1, keepdim=True)).norm(dim=1)
    return (ours - theirs).norm(dim=1) / (FAR[exact] * size)


class _Probe:
    """A plain attention that also checks whether the kernels would compute the same.

    Attributes:
        packed: whether a packed row, not a single text, is computed.
        calls: how often it was called.
        problem: why the kernels would not.
    """

    def __init__(self) -> None:
        self.packed = True
        self.calls = 0
        self.problem = ""

    def check(self) -> None:
        if self.problem:
            raise _Unable(self.problem)

    def mask(self, q_length: int, kv_length: int, mask_function: Any, device: Any, **kwargs: Any) -> Tensor:
        """A causal mask; its attribute `window` records what else the model hides."""
        mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device=device).tril_()
        mask.window = _window(mask_function, kwargs.get("local_size"))
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        layout: Any = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        self.calls += 1
        heads, queries = query.shape[1:3]
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        window = getattr(mask, "window", sliding_window)
        if given - KNOWN:
            names = ", ".join(sorted(given - KNOWN))
            self.problem = f"its attention takes {names}, which the kernels do not know"
        elif kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
            self.problem = "its attention is not causal"
        elif s_aux is not None and s_aux.numel() != heads:
            self.problem = "its attention has sinks other than one number per head"
        elif self.packed and layout is None:
            self.problem = "its layers do not pass a row's layout on to their attention"
        elif not self.packed and window != sliding_window:
            self.problem = "its layers hide tokens by more than a window that attention is told about"
        rule = Rule(scaling if scaling is not None else query.shape[3] ** -0.5, None, softcap, s_aux)
        if layout is not None:
            allowed = allowed_plain(layout, sliding_window)
        else:
            allowed = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril_()
            allowed &= ~allowed.tril(-(sliding_window or key.shape[2]))
        return attention_plain(query, key, value, allowed, rule), None


def _window(mask_function: Any, size: int | None) -> Any:
    """The window behind Transformers' mask function; "other" if it is not a causal window."""

    def allowed(query: int, key: int) -> bool:
        zero = torch.tensor(0)
        return bool(mask_function(zero, zero, torch.tensor(query), torch.tensor(key)))

    try:
        far = 2 * (size or 64) + 3
        causal = allowed(2, 1) and not allowed(1, 2)
        if size is None:
            return None if causal and allowed(far, 0) else "other"
        return size if causal and allowed(far, far - size + 1) and not allowed(far, far - size) else "other"
    except (IndexError, RuntimeError):  # it reads a mask made for this text
        return "other"
