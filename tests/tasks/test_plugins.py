"""Tasks from outside: a recipe's YAML, a registered class, an entry point of an installed package."""

import importlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import load_prepared, prepare
from fintune.errors import ConfigError
from fintune.models import manifest
from fintune.recipes import load_recipe
from fintune.tasks import Prediction, known_tasks, plugins, register, task_from_dict, task_set
from fintune.tasks import registry as registry_module
from fintune.tasks.base import Task
from fintune.tasks.types import RegressionTask

PLUGIN = """
    from fintune.tasks.types import RegressionTask

    class Surprise(RegressionTask):
        made = 0

        def __init__(self):
            super().__init__("surprise", "Predict the surprise.")
            Surprise.made += 1

        def body(self, record):
            return f"Report: {record.text}"

        def load_custom_dataset(self):
            return [{"text": f"Unit {i} reported.", "target": (i - 30) / 4000} for i in range(60)]

        def evaluate_custom_task(self, test_data):
            return {"rows": float(len(test_data))}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function: a module's source → its class is an installed package's entry point."""

    def installed(name, module, source, target):
        site = tmp_path / "site"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fintune.tasks]\n{name} = {module}:{target}\n")
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    return installed


def recipe(folder, **sections):
    return Recipe.model_validate({"data": {"prepared_dir": str(folder / "prepared")}, **sections})


def test_a_plug_in_of_an_installed_package_keeps_its_code_from_training_to_serving(install, tmp_path):
    install("surprise", "surprise_plugin", PLUGIN, "Surprise")
    chosen = recipe(tmp_path, multi_task={"task_weights": {"surprise": 1}})
    prepare(chosen, say=lambda _: None)
    prepared = load_prepared(tmp_path / "prepared")
    trained = prepared.task_set()
    manifest.write(tmp_path, chosen, trained)
    served = manifest.read(tmp_path)[1]
    for task in (trained["surprise"], served["surprise"]):
        records = prepared.records("surprise", "test")
        assert type(task).__name__ == "Surprise"
        assert task.body(records[0]) == f"Report: {records[0].text}"
        assert task.levels == trained["surprise"].levels and len(task.levels) > 5
        assert task.score(records, [Prediction(0.0)] * len(records))["rows"] == len(records)
    assert task_set(chosen)["surprise"].levels == []  # what one run learnt is not another's
    assert type(trained["surprise"]).made == 1


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("broken", "import absent_library", "No module named 'absent_library'"),
        ("misnamed", PLUGIN, "calls itself surprise"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named(install, name, source, why):
    install(name, f"{name}_plugin", source, "Surprise")
    with pytest.raises(ConfigError, match=f"plug-in task {name} .*{why}"):
        known_tasks()


@pytest.fixture
def registry(monkeypatch):
    """The registry as it was found, put back afterwards."""
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))


def test_a_registered_class_with_the_guides_two_hooks_is_a_task(registry, tmp_path):
    @register
    class Echo(Task):
        def __init__(self):
            super().__init__("echo", "Repeat the text.")

        def load_custom_dataset(self):
            return [{"text": f"Unit {i} reported.", "target": f"Unit {i}."} for i in range(40)]

        def evaluate_custom_task(self, test_data):
            return {"exact": sum(row["prediction"] == row["target"] for row in test_data) / len(test_data)}

    assert isinstance(known_tasks()["echo"], Echo)
    chosen = recipe(tmp_path, plugins=["fintune.tasks"], multi_task={"task_weights": {"echo": 1}})
    prepared = prepare(chosen, say=lambda _: None)
    records = prepared.records("echo", "test")
    answers = [Prediction(str(record.target)) for record in records]
    assert prepared.task_set()["echo"].score(records, answers) == {"exact": 1.0}


def test_a_registered_task_takes_over_what_it_had_learnt_and_nothing_else(registry):
    register(RegressionTask("change", "Predict the change in full.", unit="%"))
    kept = {"name": "change", "type": "regression", "instruction": "Old.", "unit": ""}
    task = task_from_dict({**kept, "levels": ["-1", "+1"], "level_means": [-0.9, 1.1]})
    assert (task.instruction, task.unit) == ("Predict the change in full.", "%")
    assert (task.levels, task.level_means) == (["-1", "+1"], [-0.9, 1.1])
    assert known_tasks()["change"].levels == []


def test_a_task_of_yaml_alone_stands_beside_the_built_in_ones(tmp_path):
    block = {
        "name": "urgency",
        "type": "classification",
        "instruction": "How urgent?",
        "labels": ["now", "later"],
    }
    chosen = recipe(tmp_path, custom_task=block, multi_task={"task_weights": {"qa": 1}})
    assert task_set(chosen).names() == ["qa", "urgency"]
    assert task_set(chosen)["urgency"].candidates() == ["now", "later"]
    assert known_tasks(chosen.custom_task)["urgency"].instruction == "How urgent?"


def test_a_weight_of_a_task_nobody_defines_is_refused(tmp_path):
    chosen = recipe(tmp_path, plugins=["fintune.tasks"], multi_task={"task_weights": {"astrology": 1}})
    with pytest.raises(ConfigError, match="unknown task 'astrology'; known are: sentiment, headline"):
        task_set(chosen)


def test_a_stored_task_whose_plug_in_is_gone_is_refused():
    with pytest.raises(ConfigError, match="install the plug-in that defines it"):
        task_from_dict({"name": "lost", "type": "ranking", "instruction": "Rank."})


EXAMPLES = Path(__file__).parents[2] / "configs" / "examples"


def test_the_documented_example_is_prepared_from_any_folder_and_its_task_read_back(tmp_path):
    command = ["data", "prepare", "--config", str(EXAMPLES / "plugin_task.yaml")]
    code = (
        f"from fintune.cli import main; code = main({command})\n"
        "from fintune.data.prepare.dataset import load_prepared\n"
        "prepared = load_prepared('data/processed-plugin')\n"
        "print(code, type(prepared.task_set()['notice']).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],  # -P: the working folder is not on sys.path, as for a program
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1] / "src")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["0 NoticeTask"], done.stderr


@pytest.fixture
def folders(registry, workdir, monkeypatch):
    """A function: folder → a plug-in module of this name in it, whose task says where it is from."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != workdir])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def made(folder, module, more=""):
        (workdir / folder).mkdir(exist_ok=True)
        text = f"""
            {more}
            from fintune.tasks import register
            from fintune.tasks.kinds import QATask
            register(QATask("where", "{folder}"))
        """
        (workdir / folder / f"{module}.py").write_text(textwrap.dedent(text))
        path = workdir / folder / "recipe.yaml"
        path.write_text(f"plugins: [{module}]\nmulti_task: {{task_weights: {{where: 1}}}}\n")
        return path

    return made


def test_a_plug_in_beside_its_recipe_comes_before_one_in_the_working_folder(folders):
    path, other = folders("recipes", "order_plugin"), folders(".", "order_plugin")
    assert task_set(load_recipe(path))["where"].instruction == "recipes"
    with pytest.raises(ConfigError, match=r"'order_plugin', but .* has the name of another module .*recipes"):
        task_set(load_recipe(other))
    assert task_set(load_recipe(folders(".", "working_plugin")))["where"].instruction == "."


def test_code_that_an_adapter_names_runs_only_where_the_user_trusts_it_and_names_its_folder(
    folders, workdir, monkeypatch, capsys, random_adapter
):
    recipe = load_recipe(folders("others", "kept_plugin"))
    for path in random_adapter.glob("adapter_*"):
        shutil.copy(path, workdir / "others")
    manifest.write(workdir / "others", recipe, task_set(recipe))
    del sys.modules["kept_plugin"]
    monkeypatch.setattr(plugins, "_places", {})
    monkeypatch.setattr(plugins, "_trusted", set())
    monkeypatch.setattr(plugins, "_trust_all", False)
    registry_module._registered.clear()
    monkeypatch.chdir(workdir / "others")
    for command in (["predict", "--task", "where", "--model_path", ".", "Up."], ["plan", "--config", "."]):
        assert main(command) == 2
        assert "names the plug-ins 'kept_plugin', and a plug-in is code" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="pass --trust_plugins"):
        manifest.read(".", manifest.read_recipe("."))  # its own word for it is none
    manifest.read_recipe(".")
    plugins.trust(["kept_plugin"])
    with pytest.raises(
        ConfigError,
        match=r"'kept_plugin', which cannot be imported.* set FINTUNE_PLUGINS to its folder, if you trust",
    ):
        manifest.read(".")
    assert "kept_plugin" not in sys.modules
    monkeypatch.setenv("FINTUNE_PLUGINS", os.pathsep.join(["", str(workdir / "others")]))
    assert manifest.read(".")[1]["where"].instruction == "others"
    monkeypatch.setattr(plugins, "_trusted", set())
    assert manifest.read(".", load_recipe("recipe.yaml"))[1].names() == ["where"]  # the user's own names it


def test_a_plug_in_never_takes_the_place_of_an_installed_module(folders):
    with pytest.raises(
        ConfigError, match=r"'decimal', but .*recipes.decimal\.py has the name of another module"
    ):
        task_set(load_recipe(folders("recipes", "decimal")))
    import decimal

    assert "recipes" not in decimal.__file__


def test_only_modules_that_a_recipe_names_are_imported_from_its_folder(folders, workdir):
    (workdir / "recipes").mkdir()
    (workdir / "recipes" / "unnamed_helper.py").write_text("")
    path = folders("recipes", "asking_plugin", "import unnamed_helper")
    with pytest.raises(ConfigError, match=r"No module named 'unnamed_helper' \(searched: .*recipes, .*\)"):
        task_set(load_recipe(path))
    both = load_recipe(path, ["plugins=[unnamed_helper, asking_plugin]"])
    assert task_set(both)["where"].instruction == "recipes"
