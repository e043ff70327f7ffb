"""Modelfiles: the chat template in Go gives the tokenizer's own text, or there is none."""

import re

import pytest

from fintune.config import Recipe
from fintune.models import ollama
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.tasks import Record, task_set

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m['role'] == 'user' %}[INST] "
    "{% if loop.first and s is defined %}<<SYS>>{{ s }}<</SYS>> {% endif %}"
    "{{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
COUNTED = "{% for m in messages %}{{ loop.index }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def go(template, system, turns):
    """What Go makes of the few actions that our templates have, by the same actions in Jinja."""
    from jinja2 import Environment

    pairs = [
        (r"\{\{ if not \.System \}\}", "{% if not system %}"),
        (r"\{\{ range \$i, \$m := \.Messages \}\}", "{% for m in messages %}"),
        (r"\{\{ if not \(and \$\.System \(eq \$i 1\)\) \}\}", "{% if not (system and loop.index0 == 1) %}"),
        (r'\{\{ (else )?if eq \.Role ("[a-z]+") \}\}', None),
        (r"\{\{ \.Content \}\}", "{{ m.content }}"),
    ]
    for pattern, jinja in pairs:
        by = jinja or (lambda found: f"{{% {'elif' if found[1] else 'if'} m.role == {found[2]} %}}")
        template = re.sub(pattern, by, template)
    stack = []

    def end(found):
        if found[0] != "{{ end }}":
            stack.append(found[1]) if found[1] in ("if", "for") else None
            return found[0]
        return f"{{% end{stack.pop()} %}}"

    template = re.sub(r"\{% (\w+).*?%\}|\{\{ end \}\}", end, template)
    assert "{{ ." not in template and not stack
    return Environment(keep_trailing_newline=True).from_string(template).render(system=system, messages=turns)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("smollm2-135m-instruct")


@pytest.mark.parametrize("template", [None, LLAMA3, GEMMA], ids=["chatml", "llama3", "gemma"])
def test_the_go_template_writes_what_the_tokenizers_own_does(tokenizer, monkeypatch, template):
    if template:
        monkeypatch.setattr(tokenizer, "chat_template", template)
    found = ollama.frame(tokenizer)
    task = task_set(Recipe())["sentiment"]
    record = Record(text="Profit rose.")
    wanted = PromptTemplate(tokenizer, 512).prompt_text(task, record)
    system = {"role": "system", "content": task.system(record)}
    turns = [{"role": "user", "content": task.body(record)}]
    assert go(found.go(), task.system(record), [system, *turns]) == wanted
    chat = [*turns, {"role": "assistant", "content": "positive"}, {"role": "user", "content": "And?"}]
    own = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert go(found.go(), "", chat) == own


@pytest.mark.parametrize("template", [COUNTED, LLAMA2], ids=["counted", "system-within-user"])
def test_a_template_that_is_no_frame_is_left_to_ollama(tokenizer, monkeypatch, tmp_path, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert ollama.frame(tokenizer) is None
    (path, *_) = ollama.write(tmp_path, "model-q8_0.gguf", tokenizer, task_set(Recipe()))
    assert "has no exact form in Go" in path.read_text() and "TEMPLATE" not in path.read_text()


def test_a_modelfile_says_what_to_ask_and_where_answers_end(tokenizer, tmp_path):
    tasks = task_set(Recipe())
    paths = ollama.write(tmp_path, "model-q8_0.gguf", tokenizer, tasks)
    assert [path.name for path in paths] == [f"Modelfile.{name}" for name in tasks.names()]
    text = (tmp_path / "Modelfile.qa").read_text()
    assert "FROM ./model-q8_0.gguf\n" in text and "PARAMETER temperature 0\n" in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert f'SYSTEM """{tasks["qa"].instruction}"""' in text and "QUESTION" in text.partition("FROM")[0]
