"""A real server on llama.cpp: tasks, chats and streams as of the built-in backend, one model, refusals."""

import asyncio

import httpx
import openai
import pytest

from fintune.cli import main
from fintune.inference.engine import Engine
from fintune.models.export import export

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install -e '.[llamacpp]'")
PROMPTS = ["Sales", "Net sales rose to EUR 5 million in the first quarter", "The board", "Profit"]


@pytest.fixture(scope="module")
def gguf(random_adapter, tmp_path_factory):
    return export(random_adapter, tmp_path_factory.mktemp("export") / "own.gguf", "gguf", "f32").folder


@pytest.fixture(scope="module")
def running(gguf, start, no_keys):
    server = start("--backend", "llama.cpp", "--model_path", gguf, keys=no_keys)
    yield server
    server.stop()


def test_tasks_and_texts_are_those_of_the_builtin_backend(running, random_adapter):
    import torch

    engine = Engine.load(random_adapter)
    text = "Operating profit rose to EUR 13.1 mn."
    (answer,) = httpx.post(f"{running.url}/v1/tasks/sentiment", json={"text": text}, timeout=60).json()[
        "data"
    ]
    wanted = engine.answer("sentiment", text)
    assert answer["prediction"] == wanted.value
    assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-4)

    async def ask(client, prompt):
        answer = await client.completions.create(model="own.gguf", prompt=prompt, max_tokens=8)
        return answer.choices[0].text

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=60) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS * 2))

    def written(prompt):
        ids = engine.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = engine.model.generate(**ids, max_new_tokens=8, do_sample=False)
        return engine.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    # More at once than llama.cpp has places for: the others wait, and places are taken again.
    assert asyncio.run(run()) == [written(prompt) for prompt in PROMPTS] * 2
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=60) as client:
        stream = client.completions.create(model="own.gguf", prompt=PROMPTS[1], max_tokens=8, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == written(PROMPTS[1])


def test_adapters_by_name_are_refused_in_a_sentence(running, gguf, capsys):
    answer = httpx.post(
        f"{running.url}/v1/tasks/sentiment", json={"text": "Up.", "model": "other"}, timeout=60
    )
    assert answer.status_code == 404
    assert "this server has own.gguf alone" in answer.text
    assert httpx.get(f"{running.url}/v1/adapters").json()["data"] == []
    command = ["serve", "--backend", "llama.cpp", "--model_path", str(gguf), "--adapters", str(gguf.parent)]
    assert main([*command, "--port", "0"]) == 2
    assert "--adapters is given, and --backend llama.cpp answers as one model" in capsys.readouterr().err
