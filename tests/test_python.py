"""The Python API: rows and texts of every kind in, tables out; the page and the notebook run as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fintune
from fintune.config import Recipe
from fintune.errors import ConfigError, DataError, ModelError
from fintune.tasks import Record

ROOT = Path(__file__).parents[1]
ROWS = [{"text": f"{word} {i} million", "target": word} for i in range(20) for word in ("gain", "loss")]
HEAVY = ("torch", "transformers", "datasets", "pandas", "pyarrow", "numpy", "pydantic")


def recipe(tmp_path, *names, **config):
    task = {"type": "classification", "labels": ["gain", "loss"], "instruction": "Gain or loss?"}
    tasks = {name: dict(config) for name in names} if config else {}
    data = {"prepared_dir": str(tmp_path / "prepared"), "tasks": tasks}
    return {"custom_task": [{**task, "name": name} for name in names], "data": data}


def frame(kind, rows, tmp_path):
    if kind == "list":
        return rows
    if kind == "path":
        path = tmp_path / "rows.csv"
        path.write_text("text,target\n" + "".join(f"{row['text']},{row['target']}\n" for row in rows))
        return path
    module = pytest.importorskip(kind)
    return module.Dataset.from_list(rows) if kind == "datasets" else module.DataFrame(rows)


def test_importing_the_package_imports_nothing_heavy_and_names_the_api():
    code = (
        "import sys, fintune\n"
        "assert {'prepare', 'train', 'evaluate', 'load', 'Recipe'} <= set(dir(fintune))\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = fintune.lode


@pytest.mark.parametrize("kind", ["list", "pandas", "polars", "datasets", "path"])
def test_rows_of_every_kind_are_the_same_data(kind, tmp_path, capsys):
    prepared = fintune.prepare(recipe(tmp_path, "tone"), frame(kind, ROWS, tmp_path))
    found = [r for split in ("train", "validation", "test") for r in prepared.dataset.records("tone", split)]
    assert sorted((r.text, r.target) for r in found) == sorted((r["text"], r["target"]) for r in ROWS)
    assert prepared.to_pandas().loc["tone", ["train", "validation", "test"]].sum() == len(ROWS)
    assert "tone" in repr(prepared) and "<table" in prepared._repr_html_()
    assert capsys.readouterr().out == ""


def test_splits_and_columns_are_kept_and_other_rows_are_another_file(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"words": row["text"], "target": row["target"]} for row in ROWS]
    asked = recipe(tmp_path, "tone", columns={"text": "words"})
    parts = {"train": rows[:30], "validation": rows[30:35], "test": rows[35:]}
    given = DatasetDict({split: Dataset.from_list(part) for split, part in parts.items()})
    first = fintune.prepare(asked, given)
    counts = {split: len(first.dataset.records("tone", split)) for split in parts}
    assert counts == {"train": 30, "validation": 5, "test": 5}
    second = fintune.prepare(asked, rows[:20])
    files = [prepared.recipe.data.tasks["tone"].file for prepared in (first, second)]
    assert files[0] != files[1] and all(Path(file).is_file() for file in files)
    assert fintune.prepare(asked, rows[:20]).recipe == second.recipe
    assert "file" not in asked["data"]["tasks"]["tone"]  # the caller's dict is the caller's


def test_rows_that_cannot_be_used_are_refused_in_a_sentence(tmp_path):
    import pandas as pd

    one, two = recipe(tmp_path, "tone"), recipe(tmp_path, "tone", "mood")
    mixed = pd.DataFrame({"text": ["a", 1], "target": ["gain", "loss"]})
    for asked, data, told in (
        (two, ROWS, "the recipe has tone, mood"),
        (one, {"tune": ROWS}, "did you mean 'tone'"),
        (one, {"tone": {"text": ["a"], "target": ["gain"]}}, "a dict of text, target"),
        (one, {"tone": ["gain"]}, "Row 1 of tone-train is a str"),
        (one, mixed, "several kinds"),
        (one, 3, "tone-train is a int: rows are"),
        (one, tmp_path / "absent.csv", "no file or folder"),
    ):
        with pytest.raises(DataError, match=told):
            fintune.prepare(asked, data)
    with pytest.raises(ConfigError, match="did you mean 'training'"):
        fintune.prepare({"trainin": {}})
    with pytest.raises(ModelError):
        fintune.load(tmp_path / "absent")


def test_texts_of_every_kind_get_the_answers_of_the_engine(random_adapter):
    import pandas as pd
    import polars as pl

    model = fintune.load(random_adapter)
    texts = ["Profit rose <b>8 %</b>.", "Shares fell.", "No change."]
    own = model.engine.predict("sentiment", [Record(text=text) for text in texts])
    series = pd.Series(texts, index=[7, 8, 9])
    for given in (texts, tuple(texts), series, pl.Series(texts), series.to_numpy()):
        assert list(model.predict("sentiment", given)) == own
    rows = [{"text": text} for text in texts]
    for given in (rows, pd.DataFrame(rows), pl.DataFrame(rows)):
        assert model.predict("sentiment", given).values == [answer.value for answer in own]
    assert model.predict("sentiment", texts[0])[0] == own[0]
    answers = model.predict("sentiment", series)
    table = answers.to_pandas()
    assert list(table.index) == [7, 8, 9] and list(table["value"]) == answers.values
    assert table[[f"p({label})" for label in own[0].probabilities]].sum(axis=1).round(4).eq(1).all()
    assert "<b>8" not in answers._repr_html_() and "&lt;b&gt;8" in answers._repr_html_()
    assert "Shares fell." in repr(answers) and "sentiment" in repr(model)
    asked = model.predict("qa", [{"text": "Sales were 3 million.", "question": "What were sales?"}])
    assert asked.to_pandas()["question"][0] == "What were sales?" and asked[0].token_probability is not None
    assert asked.values == model.predict("qa", "Sales were 3 million.", question="What were sales?").values
    assert len(model.predict("sentiment", [])) == 0


def test_a_text_that_is_refused_raises_or_keeps_its_place(random_adapter):
    model = fintune.load(random_adapter)
    texts = ["Shares fell.", None, "", "word " * 900]
    with pytest.raises(DataError, match="Text 2 of 4 cannot be read: it is None"):
        model.predict("sentiment", texts)
    kept = model.predict("sentiment", texts, errors="keep")
    assert kept[0] is not None and kept[1:] == [None] * 3 and set(kept.errors) == {1, 2, 3}
    assert kept.to_pandas()["error"].notna().tolist() == [False, True, True, True]
    assert model.predict("sentiment", texts[3:], truncate=True)[0] is not None


def test_one_preparation_serves_two_trainings_and_an_evaluation(tiny_recipe, tmp_path):
    small = tiny_recipe(multi_task={"task_weights": {"sentiment": 1.0}}, evaluation={"base_model": False})
    prepared = fintune.prepare(small)
    assert isinstance(small, Recipe) and prepared.recipe == small
    model = fintune.train(small, prepared, tmp_path / "own", progress=False)
    with pytest.raises(ConfigError, match="holds"):
        fintune.train(small, prepared, tmp_path / "own")
    found = fintune.evaluate(model, data=prepared, max_test=3, progress=False)
    figures = found.to_pandas()
    assert figures.loc["sentiment", "fintune"].notna().any() and (figures["n"] == 3).all()
    assert found.path == tmp_path / "own" / "results.json" and found.path.with_suffix(".html").is_file()
    assert "At most 3 test examples" in repr(found) and "<table" in found._repr_html_()


def test_the_page_is_the_notebook_and_both_run_as_written(tiny_base, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[dev]'")
    from nbclient import NotebookClient

    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert [cell.source for cell in code] == [block.strip() for block in blocks]
    code[0].source = code[0].source.replace("smollm2-135m-instruct", str(tiny_base))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # this checkout's, in the kernel too
    monkeypatch.setenv("WANDB_MODE", "offline")  # Transformers prints a line about it
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    shown = [output for cell in code for output in cell.outputs]
    told = {name: "".join(o.text for o in shown if o.get("name") == name) for name in ("stdout", "stderr")}
    assert re.fullmatch(r"(up|down) \{.*\}\n", told["stdout"])  # what the page prints itself
    lines = re.split(r"[\r\n]", told["stderr"])
    assert not [
        line for line in lines if line.strip() and not re.search(r"\d+%\||\d+/\d+ steps", line)
    ]  # bars
    tables = [output.data["text/html"] for output in shown if output.output_type == "execute_result"]
    assert len(tables) == 4 and all("<table" in table for table in tables)
    assert (tmp_path / "output" / "direction" / "results.html").is_file()
