"""Tools in the two forms of chat templates that are known, and a chat that has to call one."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest

from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.serving import tools
from fintune.serving.errors import ApiError
from fintune.serving.schemas import ChatRequest

pytest.importorskip("llguidance", reason="structured output needs the serve extra")

QWEN = """{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
Write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if tools and loop.first %}Answer with {"name": function name, "parameters": its arguments}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "price",
            "description": "A share's price <|im_end|>",
            "parameters": {
                "type": "object",
                "properties": {"ticker": {"enum": ["ABC", "XYZ"]}, "day": {"type": "integer"}},
                "required": ["ticker"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "news"}},
]
PRICE, NEWS = '{"name": "price", "arguments": {"a": {"b": 1}}}', '{"name": "news", "arguments": {}}'
CHAT = [{"role": "user", "content": "What does ABC cost?"}]


def with_template(tokenizer, template):
    other = deepcopy(tokenizer)
    other.chat_template = template
    return other


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2-135m-instruct")


def asked(**more):
    return ChatRequest.model_validate({"model": "m", "messages": CHAT, "tools": TOOLS, **more})


def test_the_form_is_the_templates(tokenizer):
    assert tools.form_of(tokenizer) is None
    assert tools.form_of(with_template(tokenizer, QWEN)) == "hermes"
    assert tools.form_of(with_template(tokenizer, LLAMA)) == "llama"


def test_a_chat_with_calls_and_results_is_the_templates_with_control_tokens_of_its_own_alone(tokenizer):
    qwen = with_template(tokenizer, QWEN)
    call = {"id": "c1", "function": {"name": "price", "arguments": '{"ticker": "ABC"}'}}
    body = asked(
        messages=[
            *CHAT,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "12.5 <|im_end|>"},
        ]
    )
    given = tools.of_request(body)
    ids = PromptTemplate(qwen, 512).chat_ids(tools.turns(body.messages), list(given.given))
    text = qwen.decode(ids)
    assert '<tool_call>\n{"name": "price", "arguments": {"ticker": "ABC"}}\n</tool_call>' in text
    assert "tool\n12.5 <|im_end|><|im_end|>" in text and '"description": "A share\'s price' in text
    assert ids.count(qwen.convert_tokens_to_ids("<|im_end|>")) == 4
    broken = asked(
        messages=[*CHAT, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "["}}]}]
    )
    with pytest.raises(ApiError, match="not a JSON object"):
        tools.turns(broken.messages)


@pytest.mark.parametrize(
    ("form", "text", "content", "names"),
    [
        ("hermes", f"I look.\n<tool_call>\n{PRICE}\n</tool_call>", "I look.", ["price"]),
        ("hermes", f"<tool_call>{PRICE}</tool_call><tool_call>{NEWS}", None, ["price", "news"]),
        ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', ..., []),
        ("hermes", '<tool_call>{"name": </tool_call>', ..., []),
        ("llama", ' {"name": "news", "parameters": {"q": "a"}} ', None, ["news"]),
        ("llama", '{"name": ["news"], "parameters": {}}', ..., []),
        ("llama", "ABC costs 12.", ..., []),
    ],
)
def test_calls_are_read_and_what_is_none_stays_text(form, text, content, names):
    said, found = tools.parsed(form, text, tools.of_request(asked()))
    assert (said, [call.function.name for call in found]) == (text if content is ... else content, names)
    single = tools.of_request(asked(parallel_tool_calls=False))
    assert len(tools.parsed(form, text, single)[1]) == min(1, len(names))


def test_tool_choice_names_a_tool():
    assert tools.of_request(asked(tool_choice="none")) is None
    named = {"type": "function", "function": {"name": "news"}}
    assert tools.of_request(asked(tool_choice=named)).names == ("news",)
    with pytest.raises(ApiError, match="none of the tools, which are price, news"):
        tools.of_request(asked(tool_choice={"type": "function", "function": {"name": "rm"}}))
    with pytest.raises(ApiError, match="without tools"):
        tools.of_request(asked(tools=None, tool_choice="required"))


@pytest.mark.slow
@pytest.mark.parametrize("template", [QWEN, LLAMA])
def test_a_chat_that_has_to_call_a_tool_calls_one_whole_and_streamed(untuned, template):
    from fastapi.testclient import TestClient

    from fintune.serving.api import build
    from fintune.serving.queue import ModelThread
    from fintune.serving.settings import Settings

    engine = untuned()
    engine.tokenizer.chat_template = template
    models = SimpleNamespace(
        get=lambda name: (engine, False),
        ready=lambda name: engine,
        check=lambda name: "base",
        folders=dict,
        names=lambda: ["base"],
        tasks=lambda name: engine.tasks,
        texts=None,
        default="base",
    )
    settings = Settings()
    body = {"model": "base", "messages": CHAT, "tools": TOOLS, "max_tokens": 400}
    with TestClient(
        build(settings, ModelThread(models, settings), None), base_url="http://localhost"
    ) as client:
        named = {"type": "function", "function": {"name": "price"}}
        for choice, temperature in (("required", 0), (named, 0), (named, 1.5)):
            asks = {**body, "tool_choice": choice, "temperature": temperature, "seed": 1}
            answer = client.post("/v1/chat/completions", json=asks).json()["choices"][0]
            (call,) = answer["message"]["tool_calls"]
            assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
            if choice != "required":
                assert json.loads(call["function"]["arguments"])["ticker"] in ("ABC", "XYZ")
            lines = client.post("/v1/chat/completions", json={**asks, "stream": True}).text.split("\n\n")
            first = json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["tool_calls"][0]
            assert first["index"] == 0 and first["function"] == call["function"]
        free = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        assert free["message"]["content"] and "tool_calls" not in free["message"]
