"""The mix: what is shown is what is trained on."""

import json

import pytest

from fintune.cli import main
from fintune.data.prepare.dataset import prepare
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.training import mix
from fintune.training.run import make_plan

SMALL = {"multi_task": {"task_weights": {"sentiment": 1.0, "summarization": 3.0}}}
SIZES = {
    "sentiment": {"dataset": "sample", "max_train": 40},
    "summarization": {"dataset": "sample", "max_train": 6},
}


def prepared_and_template(recipe):
    tokenizer = load_tokenizer(recipe.base_model.name)
    return prepare(recipe, say=lambda line: None), PromptTemplate(tokenizer, recipe.training.max_length)


@pytest.mark.parametrize("max_steps", [-1, 2])
def test_the_mix_is_that_of_the_runs_own_plan(tiny_recipe, max_steps):
    recipe = tiny_recipe(
        **SMALL, training={"max_steps": max_steps, "num_train_epochs": 2.5}, data={"tasks": SIZES}
    )
    prepared, template = prepared_and_template(recipe)
    found = mix.measure(recipe, prepared, template)
    records = {name: prepared.records(name, "train") for name in ("sentiment", "summarization")}
    plan = make_plan(recipe, prepared.task_set(), records, template)
    assert (found.steps, found.step_size) == (len(plan.schedule), 8)
    drawn = [plan.examples[i] for step in plan.schedule for i in step]
    for task in found.tasks:
        own = [example for example in plan.examples if example.task == task.name]
        assert task.examples == len(own) == len(records[task.name])
        assert task.per_epoch == plan.per_epoch[task.name] == 23
        assert task.tokens == pytest.approx(sum(map(len, own)) / len(own))
        assert task.cut == sum(example.truncated for example in own) / len(own)
        assert task.seen == sum(example.task == task.name for example in drawn)
        assert task.repeats == pytest.approx(task.seen / len(own))
    loss = [found.share(task, lambda t: t.per_epoch * t.loss_weight) for task in found.tasks]
    assert loss == pytest.approx([0.25, 0.75])


def test_a_small_task_seen_too_often_is_warned_of(tiny_recipe, capsys):
    recipe = tiny_recipe(**SMALL, training={"max_steps": -1, "num_train_epochs": 3}, data={"tasks": SIZES})
    mix.show(recipe, mix.measure_prepared(recipe))
    said = capsys.readouterr().out
    assert "summarization          6       23  50.0%" in said and "75.0%    11.5×" in said
    assert "The run: 18 steps of 8 examples, 138 in all (3.00 epochs; balanced sampling)." in said
    warning, few = [line for line in said.splitlines() if line.startswith("Warning: ")]
    assert few.startswith("Warning: Only 18 optimizer steps")
    assert warning.startswith("Warning: summarization: each of its 6 training examples is seen 11.5 times")
    assert "multi_task.sampling_strategy: proportional" in warning


def test_of_a_large_task_a_part_is_tokenized_and_it_says_so(tiny_recipe, capsys, monkeypatch):
    monkeypatch.setattr(mix, "SAMPLED", 5)
    recipe = tiny_recipe(**SMALL)
    mix.show(recipe, mix.measure_prepared(recipe))
    assert (
        "from a sample of the examples: 5 of 12 sentiment, 5 of 12 summarization." in capsys.readouterr().out
    )


def test_the_command_shows_the_mix(tiny_base, workdir, capsys):
    command = f"data mix --debug --set base_model.name={tiny_base}"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert "The run: 6 steps of 8 examples, 48 in all" in said
    assert all(name in said for name in ("sentiment", "headline", "summarization", "qa", "regression"))
    assert main([*command.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 6 and sum(t["share_of_loss"] for t in found["tasks"].values()) == pytest.approx(
        1
    )
