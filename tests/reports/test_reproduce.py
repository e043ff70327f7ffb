"""The report's commands: they must make the results again, and say what they cannot know."""

import html
import re
import shlex
from itertools import pairwise

import pytest

from fintune.config import EvaluationConfig, Recipe
from fintune.evaluation.results import Results
from fintune.recipes import recipe_from
from fintune.reports.evaluation import html_report

RECIPE = Recipe.model_validate({"data": {"prepared_dir": "prepared"}}).model_dump(mode="json")


def _results(*, settings=None, training=None, dataset="built-in sample", **more):
    """The least a page is made of."""
    training = {"recipe": RECIPE, "seed": 42, "optimizer_steps": 9, "git_commit": "aaa"} | (training or {})
    skipped = {"type": "qa", "headline_metrics": [], "dataset": dataset, "skipped": "so that it is fast"}
    settings = EvaluationConfig.model_validate(settings or {}).model_dump()
    return {
        "format": 2,
        "fintune": "0.1.0",
        "created": "2026-01-01",
        "git_commit": "bbb",
        "complete": True,
        "seconds": 60.0,
        "model": {"base": "smollm2-135m-instruct", "adapter": "output/a b"},
        "training": training,
        "data": {"describes": dataset, "folder": "prepared", "key": "k", "manifest_sha256": "s"},
        "settings": {"split": "test", "max_test": None, "seed": 0, "resamples": 1000, **settings},
        "versions": {},
        "machine": {"processor": "p", "cores": 2, "gpu": None},
        "tasks": {"qa": skipped},
        **more,
    }


def _reproduce(results):
    """The section of the page, as lines of commands and as the text below them."""
    page = html_report(Results.model_validate(results), [], "out/results.json")
    section = page[page.index('id="reproduce"') :]
    commands = section[section.index("<pre>") + 5 : section.index("</pre>")]
    below = re.sub(r"<[^>]+>", " ", section[section.index("</pre>") :])
    return html.unescape(commands).splitlines(), html.unescape(below)


def _evaluate(results):
    (line,) = [line for line in _reproduce(results)[0] if line.startswith("fintune evaluate")]
    return shlex.split(line)


def test_an_exported_model_is_trained_exported_and_asked_through_its_backend():
    made = {"adapter": "own", "exported": {"format": "gguf", "dtype": "f16"}}
    model = {"base": "smollm2-135m-instruct", "adapter": "out/gguf", "backend": "llama.cpp"}
    lines, _ = _reproduce(_results(training=made, model=model))
    steps = [line for line in lines if line.startswith("fintune") and " report " not in line]
    assert steps == [
        "fintune train --config recipe.yaml --output_dir own",
        "fintune export --model_path own --format gguf --dtype f16 --output_dir out/gguf",
        "fintune evaluate --model_path out/gguf --backend llama.cpp --output_file out/results.json",
    ]


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        ({}, {"number_decoding": "greedy", "baselines": [], "base_model": False, "bertscore_encoder": "a b"}),
        ({}, {"formats": {"summarization": {"source_numbers": True, "bullets": 5}}}),
        ({"formats": {"qa": {"copy_spans": True}}, "base_model_max_test": 40}, {}),
        ({"calibration": "contextual"}, {"calibration": "contextual", "other_models": ["x/y"]}),
    ],
)
def test_the_evaluating_command_has_every_setting(trained, evaluated):
    recipe = {**RECIPE, "evaluation": EvaluationConfig.model_validate(trained).model_dump()}
    command = _evaluate(_results(settings=evaluated, training={"recipe": recipe}))
    changes = [value for flag, value in pairwise(command) if flag == "--set"]
    meant = EvaluationConfig.model_validate(evaluated)
    made = recipe_from(recipe, changes, "recipe.yaml").evaluation
    shapes = [{name: shape for name, shape in e.formats.items() if any(shape.model_dump().values())}
              for e in (made, meant)]  # fmt: skip
    assert shapes[0] == shapes[1] and made.model_dump(exclude={"formats"}) == meant.model_dump(
        exclude={"formats"}
    )
    without_defaults = set(meant.model_dump(exclude_defaults=True))
    assert without_defaults <= {change.partition("=")[0].split(".")[1] for change in changes}


def test_each_step_comes_after_its_own_commit():
    lines, below = _reproduce(_results(training={"git_commit": "aaa+"}))
    assert [line.split(" --")[0] for line in lines] == [
        "git checkout aaa",
        "# the training had uncommitted changes, which this commit lacks",
        "fintune train",
        "git checkout bbb",
        "fintune evaluate",
        "fintune report out/results.json",
    ]
    assert "commit bbb" in " ".join(below.split())
    lines, _ = _reproduce(_results(training={"git_commit": "bbb"}))
    assert lines.count("git checkout bbb") == 1


def test_a_mean_is_made_of_members_each_at_its_commit():
    members = [{"name": f"m{i}", "seed": i, "created": f"day {i}", "git_commit": f"c{i}"} for i in (1, 2)]
    training = {"average_of": members, "created": "day 3", "git_commit": "c3"}
    lines, _ = _reproduce(_results(training=training))
    assert [line.split(" --")[0] for line in lines][:6] == [
        "git checkout c1", "fintune train", "git checkout c2", "fintune train", "git checkout c3",
        "fintune average m1 m2",
    ]  # fmt: skip


def test_public_data_and_what_the_results_do_not_know_are_named():
    lines, _ = _reproduce(_results())
    assert not any(line.startswith(("#", "export")) for line in lines)
    lines, _ = _reproduce(_results(dataset="tatqa"))
    assert lines[0].startswith("export FINTUNE_DATA_DIR=") and lines[0].endswith("tatqa")
    named = {**RECIPE, "data": {**RECIPE["data"], "dir": "/my data"}}
    lines, _ = _reproduce(_results(dataset="tatqa", training={"recipe": named}))
    assert lines[0] == "# recipe.yaml has data.dir: /my data, the folder of tatqa"
    old = _results()
    del old["git_commit"]
    old["data"]["folder"] = "elsewhere\nfintune forget"
    lines, _ = _reproduce(old)
    assert "# the commit of this evaluation (fintune 0.1.0) is not in these results" in lines
    assert any(line.startswith("# evaluated on elsewhere fintune forget (key k)") for line in lines)


def test_without_an_adapter_the_base_is_named():
    results = _results(training={"recipe": None}, model={"base": "org/other", "adapter": None})
    assert "base_model.name=org/other" in _evaluate(results)
    assert any("its recipe (--config) is not in these results" in line for line in _reproduce(results)[0])


def test_the_row_of_settings_shows_what_formats_hold():
    _, below = _reproduce(_results(settings={"formats": {"summarization": {"bullets": 5}}}))
    assert "formats.summarization.bullets 5" in below and "copy_spans" not in below
