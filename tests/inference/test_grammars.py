"""Texts kept to a schema, a pattern or a choice by the tokens that may come next, and what is too much."""

import json
import time

import pytest
import torch

from fintune.errors import DataError
from fintune.inference import grammars
from fintune.models.base import load_tokenizer

pytest.importorskip("llguidance", reason="structured output needs the serve extra")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2-135m-instruct")


def written(grammar, tokenizer, seed, most=200):
    """A text of tokens drawn evenly from those that may come next, and whether it came to its end."""
    allowed, random = grammar.allowed(tokenizer), torch.Generator().manual_seed(seed)
    ids = []
    while len(ids) < most:
        choice = allowed(0, ids)
        token = int(choice[torch.randint(len(choice), (1,), generator=random)])
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(ids), True
        ids.append(token)
    return tokenizer.decode(ids), False


@pytest.mark.parametrize("seed", range(4))
def test_any_text_of_allowed_tokens_is_of_the_schema(tokenizer, seed):
    schema = {
        "type": "object",
        "properties": {
            "label": {"enum": ["up", "down €"]},
            "score": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["label", "score", "tags"],
        "additionalProperties": False,
    }
    text, ended = written(grammars.of_schema("f", schema), tokenizer, seed)
    value = json.loads(text)
    assert ended and value["label"] in ("up", "down €") and 0 <= value["score"] <= 99
    assert text == json.dumps(value, ensure_ascii=False)  # no white space without end


def test_a_choice_may_begin_like_another_and_hold_anything(tokenizer):
    choices = ["up", "up and down", '"x"\\\n', "<|im_end|>"]
    found = {written(grammars.of_choice("f", choices), tokenizer, seed)[0] for seed in range(40)}
    assert found <= set(choices) and len(found) > 2
    many = [f"label {i}" for i in range(6_000)]
    assert written(grammars.of_choice("f", many), tokenizer, 0)[0] in many


def test_two_texts_of_one_grammar_do_not_disturb_each_other(tokenizer):
    grammar = grammars.of_choice("f", ["ab", "cd"])
    one, other = grammar.allowed(tokenizer), grammar.allowed(tokenizer)
    first = tokenizer("a")["input_ids"]
    begin = one(0, []).tolist()
    assert one(0, first).tolist() != begin == other(0, []).tolist()


def deep(levels):
    schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grammars.of_schema("f", deep(5_000)), "nested"),
        (lambda: grammars.of_schema("f", {"enum": [f"v{i}" for i in range(20_000)]}), "100,000 are allowed"),
        (lambda: grammars.of_choice("f", ["a" * 100_001]), "100,000 are allowed"),
        (lambda: grammars.of_choice("f", ["a", ""]), "empty choice"),
        (lambda: grammars.of_schema("f", [1]), "not a JSON schema"),
        (lambda: grammars.parsed("f", "{"), "not valid JSON"),
        (lambda: grammars.of_regex("f", "(.{0,1000}){0,1000}x"), "cannot be followed"),
        (lambda: grammars.of_regex("f", "(unclosed"), "cannot be followed"),
        (lambda: grammars.of_schema("f", {"$ref": "file:///etc/passwd"}), "cannot be followed"),
        (lambda: grammars.of_schema("f", {"$ref": "#"}), "cannot be followed"),
        (lambda: grammars.of_schema("f", {"uniqueItems": True, "type": "array"}), "Unimplemented"),
    ],
)
def test_what_is_too_much_or_not_known_is_refused_at_once(tokenizer, make, says):
    grammars.of_choice("f", ["a"]).allowed(tokenizer)  # the tokenizer is read once
    begun = time.process_time()
    with pytest.raises(DataError, match=says):
        made = make()
        made.allowed(tokenizer)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: grammars.of_regex("f", "(((a{1000}){1000}){1000}){1000}"),
        lambda: grammars.of_regex("f", "((a|b)*a(a|b){20}){8}"),
        lambda: grammars.of_regex("f", "(a?){500}a{500}"),
        lambda: grammars.of_schema("f", {"type": "string", "minLength": 10**6, "maxLength": 10**7}),
        lambda: grammars.of_schema("f", {"type": "string", "pattern": "^(.*a){40}$"}),
        lambda: grammars.of_schema("f", {"anyOf": [{"pattern": f"^.*{i}$"} for i in range(300)]}),
    ],
)
def test_a_hostile_pattern_costs_the_others_little_time(tokenizer, make):
    grammars.of_choice("f", ["a"]).allowed(tokenizer)
    begun = time.process_time()
    try:
        written(make(), tokenizer, 0, most=30)
    except DataError as error:
        assert "cannot be followed" in str(error)
    assert time.process_time() - begun < 3  # 0.1 s a token at most, where a step of a small model takes 0.05


def test_a_schema_cannot_change_how_it_is_read(tokenizer):
    schema = {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "type": "object", "not": {}}
    with pytest.raises(DataError, match="not"):
        grammars.of_schema("f", schema).allowed(tokenizer)
