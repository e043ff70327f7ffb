"""Objectives: each one's loss is its formula, and a new one needs its own class alone."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, TrainingArguments

from fintune.inference.engine import Engine
from fintune.kernels.likelihood import target_nll
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate, TokenizedExample
from fintune.tasks import Record, TaskSet, known_tasks
from fintune.tasks.types import RegressionTask
from fintune.training.objectives import Number, Objective, RegressionAware, Scores
from fintune.training.steps import StepBuilder
from fintune.training.throughput import FlopCount, Meter
from fintune.training.trainer import MultiTaskTrainer

WEIGHTS = {"a": 1.0, "b": 2.5}
LEVELS = ([6, 9], [6, 7, 9], [8, 9])
MEANS = (-1.0, 0.5, 2.0)


def numbers(count, own=0):
    """Examples of a number whose answer is the level `own`, targets 0.75 apart."""
    extras = [Number(LEVELS, own, MEANS, 0.75 * i - 1, 1.5) for i in range(count)]
    return [TokenizedExample([1, 2, 5 + i], LEVELS[own], "a", extra=e) for i, e in enumerate(extras)]


def losses_of(model, objective, row):
    scores = Scores(target_nll(model, row.packed), row.packed.owner, row.packed.spans, None)
    return objective.loss(scores, row)


@pytest.mark.parametrize("row_size", [1, 2, 99])
def test_the_expectations_loss_and_gradient_are_those_of_the_plain_computation(model, row_size):
    fewer = Number(LEVELS[:2], 0, (0.5, 2.0), 1.0, 0.7)  # another task's number may have fewer levels
    batch = [
        *numbers(3, own=1),
        TokenizedExample([1, 2, 7, 8], [9, 10, 11], "b"),
        TokenizedExample([1, 2, 4], LEVELS[0], "b", extra=fewer),
    ]
    objective = RegressionAware(0.7)
    weight = model.model.layers[1].mlp.up_proj.weight
    plain = torch.zeros((), dtype=torch.float64)
    for e in batch:
        scores = []
        for ids in objective.branches(e):
            logits = model(torch.tensor([e.prompt_ids + ids])).logits[0, len(e.prompt_ids) - 1 : -1]
            scores.append(logits.log_softmax(1)[range(len(ids)), ids].sum())
        loss = -scores[objective.answer(e)] / len(e.completion_ids)
        if e.extra:
            expected = sum(q * m for q, m in zip(torch.stack(scores).softmax(0), e.extra.means, strict=True))
            loss = loss + 0.7 * (expected - e.extra.target) ** 2 / e.extra.variance
        plain = plain + WEIGHTS[e.task] / (3 * 1.0 + 2 * 2.5) * loss
    step = StepBuilder(batch, [range(5)], WEIGHTS, row_size, 999, objective=objective)[0]
    total = sum((row.weights * losses_of(model, objective, row)).sum() for row in step.rows)
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (total, plain)]
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
    assert step.examples == sum(len(row.examples) for row in step.rows) == 5


def test_training_the_expectation_lowers_the_squared_error_more_than_the_likelihood_alone(model):
    """Targets that lie between levels, where the nearest level's likelihood is not the whole error."""
    batch = numbers(4, own=1)
    errors = []
    for factor in (0.0, 3.0):
        objective, square = RegressionAware(factor), RegressionAware(1.0)
        learner = copy.deepcopy(model)
        learner.train()
        optimizer = torch.optim.Adam(learner.model.layers[1].mlp.parameters(), lr=3e-3)
        (row,) = StepBuilder(batch, [range(4)], WEIGHTS, 99, 999, objective=objective)[0].rows
        for _ in range(30):
            optimizer.zero_grad()
            losses_of(learner, objective, row).mean().backward()
            optimizer.step()
        with torch.no_grad():
            both, plain = (losses_of(learner, each, row) for each in (square, RegressionAware(0.0)))
        errors.append(float((both - plain).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_a_numbers_example_holds_every_level_and_knows_its_own(tiny_base):
    template = PromptTemplate(load_tokenizer(str(tiny_base)), 128)
    task = RegressionTask("change", "Predict.", levels=["-1", "+0", "+2"], level_means=[-1.1, 0.1, 2.2])
    records = [Record(text="up", target=1.9), Record(text="down", target=-0.9)]
    objective = RegressionAware(0.5)
    up, down = objective.examples(task, records, template)
    ids = [template.completion_ids(text) for text in task.levels]
    assert objective.branches(up) == objective.branches(down) == ids
    assert (objective.answer(up), objective.answer(down)) == (2, 0)
    assert (up.extra.target, down.extra.target) == (1.9, -0.9)
    assert up.extra.variance == down.extra.variance == pytest.approx(1.4**2)
    assert objective.held_out(task, records, template)[0].extra is None
    label = known_tasks()["sentiment"]
    (example,) = objective.examples(label, [Record(text="Sales rose.", target="positive")], template)
    assert objective.branches(example) == [example.completion_ids]


class Preference(Objective):
    """The objective that the module's docstring shows, on records whose `derivation` is the worse answer."""

    shown = ("loss", "preferred")
    beta = 0.5

    def examples(self, task, records, template):
        both = zip(super().examples(task, records, template), records, strict=True)
        return [replace(e, extra=template.completion_ids(r.derivation)) for e, r in both]

    def branches(self, example):
        return [example.completion_ids, example.extra]

    def _margins(self, scores):
        moved = scores.log_likelihoods - scores.reference().log_likelihoods
        return self.beta * (moved[0::2] - moved[1::2])

    def loss(self, scores, row):
        return -logsigmoid(self._margins(scores))

    def figures(self, scores, row):
        margins = self._margins(scores)
        return {"loss": -logsigmoid(margins), "preferred": (margins > 0).float()}


def test_a_preference_objective_trains_with_its_class_alone(tiny_base, workdir):
    tokenizer = load_tokenizer(str(tiny_base))
    task, objective = known_tasks()["sentiment"], Preference()
    records = [
        Record(text=f"Sales {verb}.", target=good, derivation=bad)
        for verb, good, bad in (("rose", "positive", "negative"), ("fell", "negative", "neutral"))
    ]
    examples = objective.examples(task, records, PromptTemplate(tokenizer, 128))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).requires_grad_(False)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(base, config)

    def margin(example):
        """β · (what the adapter adds to log p of the answer, less what it adds to the worse one), plainly."""
        moved = []
        for ids in objective.branches(example):
            inputs = torch.tensor([example.prompt_ids + ids])
            logits = [model(inputs).logits]
            with torch.no_grad(), model.disable_adapter():
                logits.append(model(inputs).logits)
            own, untuned = (x[0, len(example.prompt_ids) - 1 : -1].log_softmax(1) for x in logits)
            moved.append((own - untuned)[range(len(ids)), ids].sum())
        return objective.beta * (moved[0] - moved[1])

    plain = sum(-logsigmoid(margin(example)) for example in examples) / len(examples)
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(plain, trained)

    trainer = MultiTaskTrainer(
        engine=Engine(model, tokenizer, TaskSet({"sentiment": task}), 128, "base"),
        validation={"sentiment": (records, examples)},
        steps_per_epoch=1,
        save_extra=lambda folder: None,
        batch_size=2,
        meter=Meter(FlopCount(model), 1e9),
        model=model,
        train_dataset=StepBuilder(examples, [[0, 1]] * 8, {"sentiment": 1.0}, 9, 999, objective=objective),
        args=TrainingArguments(
            str(workdir),
            max_steps=8,
            learning_rate=0.05,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=[],
        ),
    )
    loss = trainer.training_step(model, trainer.train_dataset[0])
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip(trained, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    trainer.train()
    losses = [entry["sentiment_loss"] for entry in trainer.state.log_history if "sentiment_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.evaluate()["eval_sentiment_preferred"] == 1.0
