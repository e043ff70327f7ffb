"""When a run validates, which weights it keeps, and how both survive a stop."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fintune.config import Recipe, TrainingConfig
from fintune.errors import ConfigError
from fintune.prompts import TokenizedExample
from fintune.tasks import task_set
from fintune.training.run import train
from fintune.training.validating import Best, Figure, figure_of, intervals

TASKS = task_set(Recipe())
LOSS = Figure("eval_loss")


def examples(count, length):
    return [TokenizedExample(list(range(length - 2)), [1, 2], "qa") for _ in range(count)]


@given(
    st.integers(1, 300), st.integers(3, 800), st.integers(3, 400), st.integers(1, 16), st.integers(1, 2000)
)
def test_validation_costs_an_eighth_of_training_at_most(count, length, own, size, steps):
    held_out = {"qa": examples(count, length), "headline": examples(count, length)}
    every = intervals(TrainingConfig(), LOSS, TASKS, held_out, own * size, steps)
    assert every.answers % every.loss == 0 and every.loss >= steps / 20
    in_training = steps * own * size
    losses = (steps // every.loss) * 2 * count * length / 2
    labels = (steps // every.answers) * count * length / 2
    written = (steps // every.answers) * min(count, 8) * (length / 2 + 10 * TASKS["qa"].max_new_tokens)
    assert losses + labels + written <= 0.12 * in_training


def test_an_interval_that_the_recipe_names_is_kept():
    held_out = {"qa": examples(300, 900)}
    every = intervals(TrainingConfig(eval_steps=2), LOSS, TASKS, held_out, 10, 100)
    assert (every.loss, every.answers) == (2, 2)


def test_the_figure_is_named_with_its_direction_or_refused_with_those_there_are():
    def figure(name):
        return figure_of(
            TrainingConfig(metric_for_best_model=name), TASKS, ["headline", "regression"], ["loss"]
        )

    assert figure("loss") == LOSS == figure("eval_loss")
    assert figure("headline_macro_f1") == Figure("eval_headline_macro_f1", higher=True, of_answers=True)
    assert figure("regression_mae") == Figure("eval_regression_mae", of_answers=True)
    assert not figure("headline_loss").of_answers
    with pytest.raises(ConfigError, match=r"headline_acuracy, .* did you mean 'headline_accuracy'"):
        figure("headline_acuracy")
    with pytest.raises(ConfigError, match="which validation does not compute"):
        figure("qa_f1")  # it is not trained


def test_of_equal_steps_the_earliest_is_kept_and_comes_back_from_a_checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2, bias=False)
    best = Best()
    for step, (value, weight) in enumerate(
        [(0.5, 1.0), (0.4, 2.0), (0.4, 3.0), (float("nan"), 4.0)], start=1
    ):
        model.weight.data.fill_(weight)
        if best.is_worse_than(value, LOSS):
            best.take(model, step, value)
    best.save(tmp_path)
    again = Best.load(tmp_path)
    assert (again.step, again.value) == (2, 0.4)
    again.give_back(model)
    assert model.weight.eq(2.0).all()
    assert best.is_worse_than(0.5, Figure("eval_accuracy", higher=True))
    assert Best.load(tmp_path / "absent").step == 0


def test_the_best_step_is_kept_also_by_a_run_that_goes_on_later(tiny_recipe, workdir, capsys):
    """So slow a learning rate that no answer changes: all steps are equal, and the first one is kept."""
    training = {
        "learning_rate": 1e-9,
        "metric_for_best_model": "sentiment_accuracy",
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 9,
        "num_train_epochs": 8,
    }
    one_task = {"task_weights": {"sentiment": 1}}
    recipe = tiny_recipe(training=training, multi_task=one_task)
    facts = train(recipe, workdir / "whole", progress=False)
    state = json.loads((workdir / "whole" / "checkpoint-4" / "trainer_state.json").read_text())
    seen = {e["step"]: e["eval_sentiment_accuracy"] for e in state["log_history"] if "eval_loss" in e}
    assert list(seen) == [1, 2, 3, 4] and len(set(seen.values())) == 1
    assert facts["kept"] == {
        "step": 1,
        "last_step": 4,
        "stopped_early": False,
        "metric": "sentiment_accuracy",
        "value": seen[1],
    }
    assert facts["validation"]["step"] == 1
    assert "Kept the weights of step 1 of 4" in capsys.readouterr().out
    assert "those of step 1, the best by validation" in (workdir / "whole" / "README.md").read_text()

    later = workdir / "whole" / "checkpoint-3"
    assert train(recipe, workdir / "later", resume=later, progress=False)["kept"] == facts["kept"]
    whole, again, kept, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (
            workdir / "whole",
            workdir / "later",
            workdir / "whole" / "checkpoint-1",
            workdir / "whole" / "checkpoint-4",
        )
    )
    for name in whole:
        torch.testing.assert_close(whole[name], kept[name], rtol=0, atol=0)
        torch.testing.assert_close(again[name], kept[name], rtol=0, atol=0)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)

    early = tiny_recipe(training={**training, "early_stopping_patience": 2}, multi_task=one_task)
    kept_early = train(early, workdir / "early", progress=False)["kept"]
    assert kept_early == {**facts["kept"], "last_step": 3, "stopped_early": True}
    off = {**training, "load_best_model_at_end": False, "early_stopping_patience": 1}
    kept_last = train(tiny_recipe(training=off, multi_task=one_task), workdir / "off", progress=False)["kept"]
    assert kept_last == {"step": 2, "last_step": 2, "stopped_early": True}
