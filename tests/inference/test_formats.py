"""Formats need of a tokenizer what they say."""

import tracemalloc

import pytest

from fintune.errors import ConfigError
from fintune.inference.formats import allowed_tokens
from fintune.tasks import Record
from fintune.tasks.base import TextFormat


def sentencepiece(*more):
    """A tokenizer that writes a space before every text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: i for i, piece in enumerate(["<unk>", "</s>", "▁", "-", "a", "▁-", *more])}
    raw = Tokenizer(models.BPE(vocab, [("▁", "-")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


def test_bullets_end_their_lines_with_a_token_of_bytes_where_there_is_no_other():
    tokenizer = sentencepiece(*(f"<0x{i:02X}>" for i in range(256)))
    line = tokenizer.convert_tokens_to_ids("<0x0A>")
    dash, letter = (tokenizer.convert_tokens_to_ids(token) for token in ("▁-", "a"))
    allowed = allowed_tokens(TextFormat(bullets=2), tokenizer, [Record(text="Up.", target=None)])
    assert list(allowed(0, [])) == list(allowed(0, [dash, letter, line])) == [dash]
    assert line in allowed(0, [dash, letter]) and line not in allowed(0, [dash, letter, line, dash, letter])


def test_a_dash_and_a_number_are_a_point_and_no_negative_number():
    from fintune.models.base import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    allowed = allowed_tokens(TextFormat(bullets=2), tokenizer, [Record(text="Up 3.", target=None)])
    dash, space, digit = (tokenizer.encode(text)[0] for text in ("-", " ", "3"))
    after = set(map(int, allowed(0, [dash])))
    assert digit not in after and space in after
    assert all(tokenizer.decode([i]).startswith(" ") for i in after)
    line = tokenizer.encode("\n")[-1]
    assert not {line, tokenizer.eos_token_id} & set(map(int, allowed(0, [dash, space])))
    assert {line, tokenizer.eos_token_id} <= set(map(int, allowed(0, [dash, space, digit])))


@pytest.mark.parametrize("shape", [{"bullets": 1}, {"copy_spans": True}])
def test_a_shaped_text_may_end_as_a_turn_of_the_template_does(shape):
    from fintune.models.base import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    tokenizer.eos_token, turn = "<|endoftext|>", tokenizer.eos_token_id
    allowed = allowed_tokens(TextFormat(**shape), tokenizer, [Record(text="- Sales rose")])
    written = tokenizer.encode("- Sales")
    assert {turn, tokenizer.eos_token_id} <= set(map(int, allowed(0, written)))


def test_bullets_are_refused_where_no_token_ends_a_line():
    with pytest.raises(ConfigError, match="remove `bullets`"):
        allowed_tokens(TextFormat(bullets=2), sentencepiece(), [Record(text="Up.", target=None)])


def test_a_number_of_100000_digits_costs_little_memory_and_is_copied_like_any_other():
    from fintune.models.base import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    digits = "71" * 50_000
    shape = TextFormat(source_numbers=True)
    allowed_tokens(shape, tokenizer, [Record(text="1")])  # what is kept of the tokenizer itself
    tracemalloc.start()
    allowed = allowed_tokens(shape, tokenizer, [Record(text=f"Sales of {digits} and 35.")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20

    def may_follow(text, piece):
        ids = tokenizer(text)["input_ids"]
        return tokenizer(piece)["input_ids"][0] in allowed(0, ids)

    assert may_follow("It was 71717", "1") and not may_follow("It was 71717", "3")
    assert may_follow("It was 3", "5") and not may_follow("It was 3", "1")
