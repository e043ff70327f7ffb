"""The server that `serving.py` measures beside fintune's; `python benchmarks/naive_server.py PORT`."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

from fintune.config import BaseModelConfig, TrainingConfig
from fintune.models.base import choose_precision, load_base_model, load_tokenizer
from fintune.tasks.builtin import builtin_tasks

TASK = builtin_tasks()["headline"]
name = "smollm2-135m-instruct"
dtype = choose_precision(TrainingConfig()).dtype
model = load_base_model(BaseModelConfig(name=name), dtype).eval()
pipe = pipeline("text-generation", model=model, tokenizer=load_tokenizer(name))
app = FastAPI()


class Headline(BaseModel):
    text: str


@app.post("/predict")
def predict(headline: Headline):
    messages = [{"role": "system", "content": TASK.instruction}, {"role": "user", "content": headline.text}]
    output = pipe(messages, max_new_tokens=4, do_sample=False)
    return {"label": output[0]["generated_text"][-1]["content"].strip()}


uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
