"""What OpenAI's clients may ask for besides a text: log-probabilities, choices, penalties, structure."""

import asyncio
import json
import math
from types import SimpleNamespace

import httpx
import openai
import pytest
import torch

from fintune.inference.engine import Engine
from fintune.serving.errors import ApiError
from fintune.serving.requests import model_and_task

CHAT = [{"role": "user", "content": "What is a bond?"}]
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["up", "down"]}, "count": {"type": "integer", "maximum": 99}},
    "required": ["label", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(adapters):
    return Engine.load(adapters / "first")


def chat(client, **more):
    return client.chat.completions.create(**{"model": "first", "messages": CHAT, "max_tokens": 12, **more})


def complete(client, **more):
    return client.completions.create(**{"model": "first", "prompt": "Sales", "max_tokens": 8, **more})


def scores(engine, ids):
    """(T, V) log-probabilities after each of the tokens, by one plain pass."""
    with torch.no_grad():
        return engine.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(1)


def test_null_is_as_if_a_field_were_left_out(server, client):
    names = "temperature top_p n stop seed presence_penalty frequency_penalty logit_bias stream "
    names += "stream_options response_format logprobs user best_of functions tools tool_choice top_logprobs"
    body = {"model": "first", "messages": CHAT, "max_tokens": 12, **dict.fromkeys(names.split())}
    found = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    assert found["choices"][0]["message"]["content"] == chat(client).choices[0].message.content
    body = {"model": "first", "prompt": "Sales", **dict.fromkeys([*names.split(), "echo", "suffix"])}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [
        ("chat/completions", "functions", [{"name": "f"}]),
        ("chat/completions", "top_logprobs", 2),
        ("chat/completions", "repetition_penalty", 1.3),
        ("chat/completions", "tool_choice", "required"),
        ("completions", "suffix", "end"),
        ("completions", "best_of", 3),
        ("completions", "top_k", 5),
        ("completions", "max_tokens", 0),
        ("completions", "logit_bias", {"999999": 1}),
        ("completions", "prompt", [999999]),
        ("completions", "prompt", []),
    ],
)
def test_what_changes_an_answer_and_is_not_done_is_refused_by_name(server, route, field, value):
    body = {"model": "first", "messages": CHAT} if "chat" in route else {"model": "first", "prompt": "Sales"}
    found = httpx.post(f"{server.url}/v1/{route}", json={**body, field: value})
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (400, field) and field in error["message"]


def test_what_changes_no_answer_is_accepted(client):
    more = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    assert chat(client, **more).choices[0].message.content == chat(client).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_models_own(client, engine, stream):
    found = chat(client, logprobs=True, top_logprobs=3, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in found]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    else:
        text, tokens = found.choices[0].message.content, found.choices[0].logprobs.content
    assert text == chat(client).choices[0].message.content and len(tokens) == 12
    prompt = engine.template.chat_ids(CHAT)
    ids = []
    for token in tokens:
        row = scores(engine, [*prompt, *ids])[-1]
        best = int(row.argmax())
        assert token.top_logprobs[0].token == token.token == engine.tokenizer.decode([best])
        assert token.logprob == pytest.approx(float(row[best]), abs=1e-3)
        assert token.top_logprobs[2].logprob == pytest.approx(float(row.topk(3).values[2]), abs=1e-3)
        ids.append(best)


def test_an_echoed_prompt_has_its_log_likelihood_beside_other_texts(client, engine):
    text = "Net sales rose 12 % to EUR 5 million in the first quarter. " * 12  # more than a pass of tokens
    ids = engine.tokenizer(text)["input_ids"]
    assert len(ids) > 150
    for prompt, tokens in ((text, 0), (ids, 1), ([ids, ids[:7]], 1)):
        found = complete(client, prompt=prompt, max_tokens=tokens, echo=True, logprobs=2, seed=1)
        told, row = found.choices[0].logprobs, scores(engine, ids)
        assert told.token_logprobs[0] is told.top_logprobs[0] is None
        assert len(told.tokens) == len(ids) + tokens == len(told.token_logprobs) == len(told.text_offset)
        expected = [float(row[i - 1, ids[i]]) for i in range(1, len(ids))]
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-3)
        assert found.choices[0].text.startswith(text)
        assert found.usage.completion_tokens == tokens * len(found.choices)
        for token, offset in zip(told.tokens, told.text_offset, strict=True):
            assert found.choices[0].text[offset:].startswith(token)
        for value, top in list(zip(told.token_logprobs, told.top_logprobs, strict=True))[1:]:
            assert value in top.values() and max(top.values()) >= value
    assert len(found.choices[1].logprobs.tokens) == 8


def test_choices_and_prompts_are_answered_in_order_and_counted_once(client):
    prompts = ["Sales", "The board of directors"]
    alone = [complete(client, prompt=prompt) for prompt in prompts]
    both = complete(client, prompt=prompts, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [a.choices[0].text for a in alone for _ in range(2)]
    assert both.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone)
    assert both.usage.completion_tokens == 2 * sum(each.usage.completion_tokens for each in alone)
    warm = chat(client, n=3, temperature=1.5, seed=7)
    texts = [choice.message.content for choice in warm.choices]
    assert len(set(texts)) > 1
    stream = list(
        chat(client, n=3, temperature=1.5, seed=7, stream=True, stream_options={"include_usage": True})
    )
    told = {i: "" for i in range(3)}
    for chunk in stream:
        for choice in chunk.choices:
            told[choice.index] += choice.delta.content or ""
    assert list(told.values()) == texts and stream[-1].usage == warm.usage


def test_penalties_and_biases_change_the_tokens_that_they_name(client, engine):
    bias = {str(engine.tokenizer(" profit")["input_ids"][0]): 100}
    assert complete(client, logit_bias=bias).choices[0].text == " profit" * 8
    both = complete(client, logit_bias=bias, frequency_penalty=2.0, max_tokens=60).choices[0]
    assert " profit" * 40 in both.text and both.text != " profit" * 60
    assert complete(client, presence_penalty=0.0).choices[0].text == complete(client).choices[0].text


def test_a_json_schema_is_kept_to_beside_other_texts(client, server):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 1.5):
        found = chat(client, response_format=form, max_tokens=60, temperature=temperature, n=2)
        for choice in found.choices:
            value = json.loads(choice.message.content)
            assert value["label"] in ("up", "down") and isinstance(value["count"], int)
            assert choice.finish_reason == "stop"
    text = chat(client, response_format={"type": "json_object"}, max_tokens=40).choices[0].message.content
    assert text.startswith("{")
    stream = chat(client, response_format=form, max_tokens=60, stream=True)
    assert set(json.loads("".join(c.choices[0].delta.content or "" for c in stream))) == {"label", "count"}


def test_a_choice_and_a_pattern_are_kept_to(client):
    for extra, fits in (
        ({"guided_choice": ["bullish", "bearish: very"]}, {"bullish", "bearish: very"}),
        ({"structured_outputs": {"choice": ['a "b"\n\\']}}, {'a "b"\n\\'}),
        ({"structured_outputs": {"regex": "[ab]{3}-7"}}, {f"{x}-7" for x in map("".join, _cubes("ab"))}),
        ({"guided_json": {"const": 12}}, {"12"}),
    ):
        assert chat(client, extra_body=extra).choices[0].message.content in fits


def _cubes(letters):
    return [(a, b, c) for a in letters for b in letters for c in letters]


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(60),
        {"type": "string", "pattern": "(.{0,1000}){0,1000}x"},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"type": "nope"},
        {"not": {}},
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(6)]} for i in range(8)]},
    ],
)
def test_a_hostile_schema_is_the_clients_mistake(client, schema):
    with pytest.raises(openai.BadRequestError, match="response_format") as caught:
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        chat(client, response_format=form, timeout=10)
    assert "root:" not in str(caught.value)
    assert chat(client).choices[0].finish_reason == "length"


def test_a_task_takes_no_options_that_its_answer_has_no_place_for(client):
    for more in ({"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(
            openai.BadRequestError, match=f"{next(iter(more))} cannot be combined with a task"
        ):
            chat(client, model="first:headline", **more)


def test_turns_without_content_are_empty_and_tools_are_refused_where_the_template_has_none(client):
    said = [*CHAT, {"role": "assistant", "content": None}, *CHAT]
    assert chat(client, messages=said).usage.prompt_tokens > chat(client).usage.prompt_tokens
    tool = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="chat template has no known form for tools"):
        chat(client, tools=[tool])
    assert chat(client, tools=[tool], tool_choice="none").choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="user message needs content"):
        chat(client, messages=[{"role": "user", "content": None}])


def test_a_task_alone_is_a_model_where_one_adapter_is_served(client):
    def models(*adapters):
        def check(name):
            if name not in ("base", *adapters):
                raise ApiError(404, "no model")
            return name

        folders, tasks = dict.fromkeys(adapters), SimpleNamespace(names=lambda: ["headline"])
        names = lambda: ["base", *adapters]  # noqa: E731
        found = SimpleNamespace(folders=lambda: folders, names=names, tasks=lambda name: tasks, check=check)
        return SimpleNamespace(models=SimpleNamespace(**vars(found), default="base"))

    assert model_and_task(models("one"), "headline") == ("one", "headline")
    assert model_and_task(models(), "headline") == ("base", "headline")
    assert model_and_task(models("headline"), "headline") == ("headline", "")
    assert model_and_task(models("one", "two"), "two:headline") == ("two", "headline")
    with pytest.raises(ApiError):
        model_and_task(models("one", "two"), "headline")
    with pytest.raises(openai.NotFoundError):
        chat(client, model="headline")


def test_embeddings_are_refused_and_the_root_leads_to_the_documentation(client, server):
    with pytest.raises(openai.NotFoundError, match="no embeddings"):
        client.embeddings.create(model="first", input="a")
    assert httpx.get(server.url, follow_redirects=True).url.path == "/docs"


def test_no_log_probability_is_infinite(client):
    found = complete(client, logit_bias={"1": -100}, logprobs=5, temperature=1.0, seed=3)
    assert all(map(math.isfinite, found.choices[0].logprobs.token_logprobs))


def test_texts_of_different_options_written_together_are_those_written_alone(server):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    options = [
        {},
        {"response_format": form, "max_tokens": 40},
        {"presence_penalty": 1.0, "temperature": 1.0, "seed": 5},
        {"logprobs": True, "top_logprobs": 2},
        {"extra_body": {"guided_choice": ["up", "down"]}},
    ]

    async def ask(client, more):
        answer = await chat(client, **more)
        return answer.choices[0].message.content

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=30) as client:
            alone = [await ask(client, more) for more in options]
            together = await asyncio.gather(*(ask(client, more) for more in options * 3))
            return alone * 3, together

    alone, together = asyncio.run(run())
    assert alone == together


def test_a_stop_text_cuts_its_tokens_off_too(client):
    whole = chat(client, logprobs=True).choices[0]
    stop = whole.message.content[len(whole.message.content) // 2 :][:3]
    cut = chat(client, logprobs=True, stop=stop).choices[0]
    told = [token.token for token in cut.logprobs.content]
    assert told == [token.token for token in whole.logprobs.content][: len(told)]
    assert "".join(told).startswith(cut.message.content) and len(told) < 12
