"""Rows that name a document: its text is read from the folder of their file, and from nowhere else."""

import json

from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.data.raw.readers.named_documents import named_documents
from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import row_files
from fintune.data.records import Dropped
from fintune.tasks.types import ClassificationTask


def write(folder, count=40):
    (folder / "texts").mkdir()
    rows = []
    for n in range(count):
        name = f"texts/{n}.{('txt', 'html', 'md')[n % 3]}"
        body = f"Report {n} tells of {'profit' if n % 2 else 'loss'} in a plant called {n * 977}."
        (folder / name).write_text(f"<html><body><p>{body}</p></body></html>" if n % 3 == 1 else body)
        rows.append({"path": name, "verdict": "good" if n % 2 else "bad"})
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_a_tables_documents_are_its_texts_and_a_changed_one_is_prepared_anew(tmp_path):
    table = write(tmp_path)
    own = {"name": "view", "type": "classification", "instruction": "Good?", "labels": ["bad", "good"]}
    columns = {"document": "path", "target": "verdict"}
    raw = {
        "custom_task": own,
        "data": {
            "prepared_dir": str(tmp_path / "made"),
            "tasks": {"view": {"file": str(table), "columns": columns}},
        },
    }
    made = prepare(Recipe.model_validate(raw), say=lambda _: None)
    records = [r for split in ("train", "validation", "test") for r in made.records("view", split)]
    assert len(records) == 40
    assert all(r.text.startswith("Report") and ("profit" in r.text) == (r.target == "good") for r in records)
    said = []
    prepare(Recipe.model_validate(raw), say=said.append)
    assert "up to date" in said[0]
    (tmp_path / "texts" / "3.txt").write_text("Report 3 is another text of profit.")
    anew = prepare(Recipe.model_validate(raw), say=lambda _: None)
    assert anew.manifest["key"] != made.manifest["key"]


def test_a_row_reads_no_file_from_elsewhere(tmp_path):
    (tmp_path / "secret.txt").write_text("password")
    folder = tmp_path / "given"
    folder.mkdir()
    table = write(folder, count=1)
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    named = [
        "../secret.txt",
        str(tmp_path / "secret.txt"),
        "link.txt",
        "texts/9.txt",
        "texts",
        "",
        "file:///a",
    ]
    with table.open("a") as stream:
        stream.writelines(json.dumps({"path": name, "verdict": "bad"}) + "\n" for name in named)
    task = ClassificationTask("view", "Good?", ["bad", "good"])
    for told in ({"columns": {"document": "path"}}, {"trained": {"document": "path", "target": "verdict"}}):
        first, *rest = read_inputs(row_files(table, "file")[0], task, **told)
        assert first.text.startswith("Report 0")
        assert len(rest) == len(named) and all(isinstance(row, Dropped) for row in rest)
        assert "below the folder of rows.jsonl" in rest[0].why


def test_tables_of_two_folders_may_name_their_documents_alike(tmp_path):
    files = []
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        files += row_files(write(tmp_path / folder, count=3), "file")
    assert len(named_documents(files, "path")) == 6
