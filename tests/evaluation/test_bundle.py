"""A bundle: an evaluated adapter's recipe runs again to the same figures, and what differs is told."""

import json

import pytest

from fintune.evaluation import bundle
from fintune.files import file_sha256

pytestmark = pytest.mark.slow


def reseal(folder):
    names = sorted(path.name for path in folder.iterdir() if path.name != bundle.SUMS)
    (folder / bundle.SUMS).write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in names))


def test_a_bundle_runs_again_and_other_figures_or_data_are_told(tiny_recipe, workdir, capsys):
    from fintune.cli import main
    from fintune.pipeline import run

    tasks = {"sentiment": {"dataset": "sample", "max_train": 12, "max_validation": 4, "max_test": 4}}
    recipe = tiny_recipe(training={"max_steps": 2}, multi_task={"task_weights": {"sentiment": 1.0}})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"tasks": {}})})
    recipe = type(recipe).model_validate(recipe.model_dump(exclude_unset=True) | {"data": {"tasks": tasks}})
    run(recipe, workdir / "model")
    assert main(["export", "--format", "bundle", "--model_path", "model", "--output_dir", "kept"]) == 0
    kept = workdir / "kept"
    content = json.loads((kept / "bundle.json").read_text())
    assert content["metrics"]["sentiment"] and "sentiment/test.parquet" in content["data"]
    pins = (kept / "constraints.txt").read_text()
    assert "torch==" in pins and "tokenizers==" in pins and "gradio" not in pins
    capsys.readouterr()
    assert main(["reproduce", "kept", "--output_dir", "again", "--tolerance", "0.0001"]) == 0
    shown = capsys.readouterr().out
    assert "✓ sentiment" in shown and "Reproduced." in shown and "Different version" not in shown

    (kept / "recipe.yaml").write_text((kept / "recipe.yaml").read_text() + "# changed\n")
    assert main(["reproduce", "kept", "--output_dir", "third"]) != 0
    assert "recipe.yaml does not match SHA256SUMS" in capsys.readouterr().err
    content["metrics"]["sentiment"] = {
        name: value + 0.5 for name, value in content["metrics"]["sentiment"].items()
    }
    content["data"]["sentiment/test.parquet"] = "0" * 64
    (kept / "bundle.json").write_text(json.dumps(content))
    reseal(kept)
    assert main(["reproduce", "kept", "--output_dir", "third", "--json"]) == 1
    told, shown = capsys.readouterr()
    assert json.loads(told)["same"] is False
    assert "✗ sentiment" in shown and "Other data: sentiment/test.parquet" in shown


def test_what_was_not_evaluated_or_not_made_by_one_run_is_no_bundle(random_adapter, workdir, capsys):
    from fintune.cli import main

    command = ["export", "--format", "bundle", "--model_path", str(random_adapter), "--output_dir", "kept"]
    assert main(command) != 0
    assert "was not made by one run of one recipe" in capsys.readouterr().err
    assert main([*command, "--dtype", "f16"]) != 0
    assert "--dtype does not go with --format bundle" in capsys.readouterr().err
    assert main(["reproduce", str(random_adapter), "--output_dir", "again"]) != 0
    assert "is not a bundle: it has no SHA256SUMS" in capsys.readouterr().err
