"""A text a token at a time: what is sent is never taken back, and is at its end what `predict` answers."""

import pytest
import torch

from fintune.inference.formats import without_cut_number
from fintune.models.base import load_tokenizer
from fintune.serving.writing import Sampling, Writing


@pytest.mark.parametrize(
    "text", ["Sales rose 5 million to 12.5 in Q3 2026.", "- Up 4 %\n- Cash of 12\n- Debt"]
)
def test_a_number_that_the_limit_cuts_off_is_not_sent(text):
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    ids = tokenizer(text)["input_ids"]
    for limit in range(1, len(ids) + 1):
        pieces = []
        writing = Writing([1], Sampling(max_tokens=limit), pieces.append, lambda: False, source_numbers=True)
        for token in ids[:limit]:
            logits = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor(token), 1.0)
            writing.take(logits, {tokenizer.eos_token_id}, tokenizer.decode)
        assert writing.finish == "length"
        assert "".join(pieces) == without_cut_number(tokenizer.decode(ids[:limit]))
    assert len(pieces) > 5
