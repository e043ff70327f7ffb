"""lm-evaluation-harness, which shares no code with our scoring, finds our accuracy to the example."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml

from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.errors import DataError
from fintune.evaluation.lm_eval import export, task_name
from fintune.inference.engine import Engine
from fintune.training.run import train

CHECK = """
import json, sys
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
folder, base, adapter, *names = sys.argv[1:]
arguments = {"pretrained": base, "peft": adapter, "dtype": "float32"}
manager = TaskManager(include_path=folder, include_defaults=False)
found = simple_evaluate("hf", arguments, names, task_manager=manager, device="cpu", bootstrap_iters=0)
rows = {n: [[s["doc"]["id"], s["acc"]] for s in found["samples"][n]] for n in names}
print(json.dumps({"rows": rows, "acc": {n: found["results"][n]["acc,none"] for n in names}}))
"""


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="no lm-eval: pip install lm-eval")
def test_lm_eval_gives_our_accuracy_to_the_example(tiny_recipe, workdir):
    recipe = tiny_recipe(data={"tasks": {n: {"dataset": "sample", "max_test": 20, "max_train": 12,
                                             "max_validation": 4} for n in ("sentiment", "headline")}},
                         multi_task={"task_weights": {"sentiment": 1.0, "headline": 1.0}})  # fmt: skip
    prepared = prepare(recipe, say=lambda line: None)
    train(recipe, workdir / "out", prepared=prepared, progress=False)
    engine = Engine.load(workdir / "out")
    records = {name: prepared.records(name, "test") for name in ("sentiment", "headline")}
    assert export(engine.tasks, engine.template, records, workdir / "tasks") == [
        task_name("sentiment"),
        task_name("headline"),
    ]
    command = [workdir / "tasks", recipe.base_model.name, workdir / "out", *map(task_name, records)]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *map(str, command)],
        cwd=workdir,  # not the repository, whose evaluate.py has the name of a library that lm-eval imports
        env={**os.environ, "HF_HOME": str(workdir / "cache"), "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, own in records.items():
        answers = engine.predict(name, own)
        right = {r.id: float(a.value == r.target) for r, a in zip(own, answers, strict=True)}
        assert dict(found["rows"][task_name(name)]) == right and len(right) == 20
        assert found["acc"][task_name(name)] == pytest.approx(sum(right.values()) / 20)


def test_the_export_holds_exact_prompts_and_refuses_what_has_no_labels(untuned, workdir):
    import pyarrow.parquet as pq

    from fintune.data.raw.sample import sample_records

    engine = untuned(max_length=128)
    own = [r for r in sample_records("headline") if r.split == "test"][:3]
    export(engine.tasks, engine.template, {"headline": own, "qa": []}, workdir / "tasks")
    config = yaml.safe_load((workdir / "tasks" / "headline.yaml").read_text())
    rows = pq.read_table(config["dataset_kwargs"]["data_files"]["test"]).to_pylist()
    for row, record in zip(rows, own, strict=True):
        assert row["prompt"] == engine.template.prompt_text(engine.tasks["headline"], record)
        assert config["doc_to_choice"][row["label"]] == f"{record.target}<|im_end|>"
    with pytest.raises(DataError, match="None of the tasks qa has labels"):
        export(engine.tasks, engine.template, {"qa": own}, workdir / "other")
    assert not (workdir / "other").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(random_adapter, workdir, capsys):
    """The examples are those that `--max_test` draws for an evaluation, not the first ones."""
    import pyarrow.parquet as pq

    from fintune.cli import main
    from fintune.evaluation.task_run import drawn

    (workdir / "mine").mkdir()
    (workdir / "mine" / "notes.txt").write_text("mine")
    command = ["evaluate", "--model_path", str(random_adapter), "--max_test", "3", "--export_lm_eval"]
    assert main([*command, "mine"]) == 2 and "holds something else" in capsys.readouterr().err
    assert (workdir / "mine" / "notes.txt").read_text() == "mine"
    assert main([*command, "tasks"]) == 0 and main([*command, "tasks"]) == 0
    ids = pq.read_table(workdir / "tasks" / "headline.parquet")["id"].to_pylist()
    test = prepare(Recipe(), say=lambda line: None).records("headline", "test")
    assert ids == [record.id for record in drawn(test, 3)] != [record.id for record in test[:3]]
