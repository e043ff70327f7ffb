"""What `auto` makes of a recipe: enough steps for small data, and nothing that was asked otherwise."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import AUTO, Recipe
from fintune.errors import ConfigError
from fintune.recipes import load_recipe, recipe_from
from fintune.training.fit import (
    choices,
    epoch_size,
    few_steps,
    fitted,
    row_size,
    small_passes,
    with_row_tokens,
)

CONFIGS = Path(__file__).parents[2] / "configs"
AUTOMATIC = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "warmup_steps",
)


def made(sizes, **training):
    training = fitted(Recipe.model_validate({"training": training}), sizes).training
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return training, size, math.ceil(sum(sizes.values()) * training.num_train_epochs / size)


def test_a_small_set_gets_the_steps_that_the_guides_numbers_deny_it():
    training, size, steps = made({"headline": 214})
    assert (size, steps) == (4, 161) and training.warmup_steps == round(0.05 * 161)
    assert made({"headline": 50})[2] >= 100  # by more epochs, as smaller steps do not reach it
    assert made({"headline": 9000})[1:] == (16, 1688)


@given(st.integers(1, 50_000))
def test_every_size_of_data_gets_numbers_in_their_bounds(count):
    training, size, steps = made({"qa": count})
    assert all(isinstance(getattr(training, name), int) for name in AUTOMATIC)
    assert 4 <= size <= 16 and 3 <= training.num_train_epochs <= 10
    assert steps >= min(100, 2.5 * count)
    assert training.warmup_steps <= 0.1 * steps


@pytest.mark.parametrize("name", ["num_train_epochs", "gradient_accumulation_steps", "warmup_steps"])
@pytest.mark.parametrize("value", [1, 3, 16, 100])
def test_what_is_asked_for_is_obeyed_and_the_rest_fits_it(name, value):
    training, _, _ = made({"qa": 214}, **{name: value})
    assert getattr(training, name) == value
    assert all(getattr(training, other) != AUTO for other in AUTOMATIC)


def test_accumulation_of_16_takes_single_examples_and_more_epochs():
    training, size, steps = made({"qa": 214}, gradient_accumulation_steps=16)
    assert training.per_device_train_batch_size == 1 and size == 16 and steps >= 100
    assert made({"qa": 1000}, per_device_train_batch_size=4)[0].gradient_accumulation_steps == 4


def test_max_steps_is_reached_however_small_the_data():
    assert made({"qa": 20}, max_steps=400)[2] >= 400
    assert made({"qa": 20}, max_steps=400)[0].warmup_steps == 20


def test_the_guides_recipe_and_ours_keep_every_number():
    for path in (CONFIGS / "llama-2-7b.yaml", CONFIGS / "default.yaml", CONFIGS / "quickstart.yaml"):
        recipe = load_recipe(path)
        assert fitted(recipe, {"qa": 10}) == recipe, path
        assert not choices(recipe, recipe)


def test_a_fitted_recipe_reads_back_and_says_what_was_chosen():
    asked = recipe_from({"training": {"num_train_epochs": "auto", "warmup_ratio": 0.1}}, None, "here")
    recipe = fitted(asked, {"qa": 214})
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert "num_train_epochs 3" in choices(asked, recipe) and "warmup" not in choices(asked, recipe)
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps must be > 0, got 0"):
        recipe_from({"training": {"gradient_accumulation_steps": 0}}, None, "here")


def test_the_recipe_of_an_adapter_fits_new_data_again(tmp_path):
    from argparse import Namespace

    from fintune.commands.common import recipe_of

    recipe = fitted(Recipe.model_validate({"training": {"warmup_steps": 7}}), {"qa": 214})
    told = {"recipe": recipe.model_dump(), "fitted": ["num_train_epochs", "per_device_train_batch_size"]}
    (tmp_path / "fintune.json").write_text(json.dumps(told))
    again = recipe_of(Namespace(config=str(tmp_path), set=[], data_dir=None, debug=False)).training
    assert (again.num_train_epochs, again.per_device_train_batch_size) == (AUTO, AUTO)
    assert (again.gradient_accumulation_steps, again.warmup_steps) == (1, 7)


def test_an_epoch_is_what_the_mix_draws():
    recipe = Recipe.model_validate({"multi_task": {"task_weights": {"qa": 0, "headline": 1}}})
    assert epoch_size(recipe, {"qa": 100, "headline": 7, "own": 5}) == 12
    assert "Only 49 optimizer steps" in few_steps(49) and not few_steps(50)


def test_on_a_gpu_tokens_alone_decide_a_pass_unless_a_batch_is_asked_for():
    for asked, on_gpu in ((Recipe(), 4096), (Recipe.model_validate({"training": {"batch_size": 8}}), 8)):
        made = with_row_tokens(fitted(asked, {"qa": 9000}), "cpu")
        assert row_size(asked, made, "cuda") == on_gpu
        assert row_size(asked, made, "cpu") == made.training.per_device_train_batch_size < 4096
        assert (
            "A pass holds only 8 examples, about 480 of 4,096 tokens" in small_passes(asked, made, 60, "cuda")
        ) == (on_gpu == 8)
        assert not small_passes(asked, made, 600, "cuda") and not small_passes(asked, made, 60, "cpu")
