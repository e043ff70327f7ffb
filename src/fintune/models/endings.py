"""Begin and end tokens of a text, according to tokenizer, generation config and chat template."""

from __future__ import annotations

from typing import Any

_PROBE = "\u2045answer\u2046"


def end_tokens(tokenizer: Any, generation: Any = None) -> list[int]:
    """Ids of the tokens that end an answer: the tokenizer's first, then the others, without duplicates."""
    named = getattr(generation, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    found.append(tokenizer.convert_tokens_to_ids(end) if (end := turn_end(tokenizer)) else None)
    return list(dict.fromkeys(each for each in found if each is not None))


def turn_end(tokenizer: Any) -> str:
    """The special token right after an assistant's turn in the chat template; "" if there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).partition(_PROBE)[2].lstrip()
    except Exception:  # a template may raise anything for an order of roles
        return ""
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return max((name for name in known if after.startswith(name)), key=len, default="")


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its begin-of-text token before every text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
