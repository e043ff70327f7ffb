"""A training step never waits for its device: it goes there in one copy, and nothing is read back."""

from unittest.mock import patch

import pytest
import torch
from copies import Copies
from transformers import AutoModelForCausalLM, TrainingArguments

from fintune.config import LoraConfig
from fintune.inference.engine import Engine
from fintune.models.adapters import add_adapter
from fintune.models.base import load_tokenizer
from fintune.prompts import TokenizedExample
from fintune.tasks import TaskSet, known_tasks
from fintune.training.objectives import Likelihood, Number, RegressionAware
from fintune.training.steps import StepBuilder
from fintune.training.throughput import FlopCount, Meter
from fintune.training.trainer import MultiTaskTrainer

LEVELS = ([6, 9], [6, 7, 9])


def examples(numbers):
    found = [TokenizedExample([1, 2, 5, 5 + i], [9, 10 + i], "headline") for i in range(6)]
    for i in range(4):
        extra = Number(LEVELS, i % 2, (0.5, 2.0), 1.0, 0.7) if numbers else None
        found.append(TokenizedExample([1, 3, 5 + i], LEVELS[i % 2], "regression", extra=extra))
    return found


@pytest.mark.parametrize(
    "objective", [Likelihood(), RegressionAware(0.5)], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("row_size", [2, 99])
def test_a_step_is_one_copy_to_the_device_and_nothing_comes_back(tiny_base, workdir, objective, row_size):
    """Meta tensors stand for a GPU's: they have no values, so whatever reads one raises."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).requires_grad_(False)
    model = add_adapter(base, LoraConfig(r=4, lora_dropout=0.0))
    known = known_tasks()
    tasks = {name: known[name] for name in ("headline", "regression")}
    found = examples(isinstance(objective, RegressionAware))
    builder = StepBuilder(
        found, [range(len(found))], dict.fromkeys(tasks, 1.0), row_size, 999, objective=objective
    )
    arguments = TrainingArguments(
        str(workdir), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False
    )
    trainer = MultiTaskTrainer(
        engine=Engine(model, load_tokenizer(str(tiny_base)), TaskSet(tasks), 128, "base"),
        validation={},
        steps_per_epoch=1,
        save_extra=lambda folder: None,
        batch_size=2,
        meter=Meter(FlopCount(model), 1e9),
        model=model,
        train_dataset=builder,
        args=arguments,
    )
    step = builder[0]
    assert len(step.rows) == (1 if row_size == 99 else 5)
    trainer._sums = trainer._sums.to("meta")
    model.to("meta")
    with patch.object(TrainingArguments, "device", torch.device("meta")), Copies() as copies:
        loss = trainer.training_step(model, step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert len(copies.seen) == 1
    assert loss.is_meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
