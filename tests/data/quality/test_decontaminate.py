"""Your own training file without what repeats a test set: exact, near, in chat messages, in any format."""

import csv
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.data.quality.decontaminate import decontaminate
from fintune.data.raw.registry import Dataset
from fintune.errors import ConfigError, DataError

TEST = "Acme Tools raises its outlook for the year after a strong third quarter in Europe"
NEAR = "Acme Tools raises its outlook for the year after a strong third quarter in Europe, says CEO"
SENTENCE = "Borealis Shipping sinks as freight rates fall for a fifth week in a row"
CLEAN = "A bakery opens its second shop in town and hires twelve people for the winter"
TEXTS = [
    CLEAN,
    f"{TEST.upper()} https://t.co/Zz9",
    NEAR,
    'Quotes "here", a comma\nand a line break',
    SENTENCE,
]


@pytest.fixture
def public(workdir):
    """A data folder with two small datasets of our own words, in the form of the public ones."""
    folder = workdir / "raw"
    (folder / "twitter_financial_news").mkdir(parents=True)
    for name, text in (("train", "A training text about nothing"), ("valid", f"{TEST} https://t.co/Ab1")):
        (folder / "twitter_financial_news" / f"sent_{name}.csv").write_text(f'text,label\n"{text}",1\n')
    (folder / "fiqa_sa").mkdir()
    for kind in ("headline", "post"):
        for split in ("train", "test"):
            item = {"target": "Borealis", "sentiment_score": "-0.5"}
            entries = {f"{kind}-1": {"sentence": SENTENCE, "info": [item]}} if split == "test" else {}
            (folder / "fiqa_sa" / f"task1_{kind}_ABSA_{split}.json").write_text(json.dumps(entries))
    return Recipe.model_validate({"data": {"dir": str(folder)}})


def silent(line):
    """Takes a line and says nothing."""


def removed(path):
    return [
        json.loads(line) for line in (path.parent / f"{path.name}.removed.jsonl").read_text().splitlines()
    ]


def test_a_csv_keeps_its_bytes_save_for_the_removed_rows(public, workdir):
    rows = [f'"{text}";{i}\r\n'.replace('"here"', '""here""') for i, text in enumerate(TEXTS)]
    content = "\ufefftext;n\r\n" + "".join(rows)
    (workdir / "own.csv").write_bytes(content.encode())
    found = decontaminate(workdir / "own.csv", workdir / "clean.csv", public, say=silent)
    kept = "\ufefftext;n\r\n" + rows[0] + rows[3]
    assert (workdir / "clean.csv").read_bytes() == kept.encode()
    assert found.rows == 5
    shown = [(row["row"], row["test_set"], row["how"]) for row in removed(workdir / "clean.csv")]
    assert shown == [
        (2, "twitter_financial_news", "exact"),
        (3, "twitter_financial_news", "near"),
        (5, "fiqa_sa", "exact"),
    ]
    near = removed(workdir / "clean.csv")[1]
    assert near["similarity"] == round(13 / 15, 4)
    assert near["test_id"] == "sent_valid.csv:2"


def test_chat_messages_are_compared_one_by_one_and_lines_stay_as_they_are(public, workdir):
    prompt = f"Classify the sentiment of this headline.\n\n{TEST}"
    lines = [
        json.dumps(
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "good"}]}
        ),
        '{"messages":[{"role":"user","content":"Classify.\\n\\n' + CLEAN + '"}],  "n": 1.50}',
        "not json",
        "",
    ]
    (workdir / "own.jsonl").write_text("\n".join(lines) + "\n")
    found = decontaminate(workdir / "own.jsonl", workdir / "clean.jsonl", public, say=silent)
    assert (workdir / "clean.jsonl").read_text() == "\n".join(lines[1:]) + "\n"
    assert (found.rows, len(found.removed), found.unread) == (3, 1, 1)


def test_a_row_of_instruction_data_is_compared_in_every_field(public, workdir):
    rows = [
        {"instruction": f"Is this good news?\n\n{TEST}", "input": "Answer yes or no.", "output": "yes"},
        {"instruction": "Is this good news?", "input": SENTENCE, "output": "no"},
        {"instruction": "Is this good news?", "input": CLEAN, "output": "yes"},
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (workdir / "own.jsonl").write_text("".join(lines))
    decontaminate(workdir / "own.jsonl", workdir / "clean.jsonl", public, say=silent)
    assert (workdir / "clean.jsonl").read_text() == lines[2]


def test_line_ends_of_every_kind_and_text_over_several_lines_stay_or_go_whole(public, workdir):
    row = f'"{TEST}\r\nand a second line"\r\n'
    content = f'body\r\n"one\n\ntwo"\r\n{row}"three"\n"{SENTENCE}"\nfour'.encode()
    (workdir / "own.csv").write_bytes(content)
    found = decontaminate(workdir / "own.csv", workdir / "clean.csv", public, say=silent, threshold=0.7)
    assert [entry["row"] for entry in found.removed] == [2, 4]
    assert (workdir / "clean.csv").read_bytes() == b'body\r\n"one\n\ntwo"\r\n"three"\nfour'


def test_a_parquet_file_keeps_schema_and_order(public, workdir):
    table = pa.table({"n": pa.array(range(5), pa.int16()), "headline": TEXTS})
    pq.write_table(table, workdir / "own.parquet")
    decontaminate(workdir / "own.parquet", workdir / "clean.parquet", public, say=silent)
    clean = pq.read_table(workdir / "clean.parquet")
    assert clean.schema == table.schema
    assert clean["n"].to_pylist() == [0, 3]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_table_keeps_its_encoding_and_its_layout(public, workdir, encoding):
    rows = ["sep=|", "text|n", f"{CLEAN} für 5 €|1", f"{TEST}|2", '"two\r\nlines – naïve"|3', ""]
    (workdir / "own.csv").write_bytes("\r\n".join(rows).encode(encoding))
    said = []
    found = decontaminate(workdir / "own.csv", workdir / "clean.csv", public, say=said.append)
    del rows[3]
    assert (workdir / "clean.csv").read_bytes() == "\r\n".join(rows).encode(encoding)
    assert len(found.removed) == 1 and encoding in said[0]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_packed_file_is_packed_again(public, workdir, ending):
    codec = {"gz": "gzip", "zst": "zstd"}[ending]
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    with pa.CompressedOutputStream(str(workdir / f"own.jsonl.{ending}"), codec) as stream:
        stream.write("".join(lines).encode())
    decontaminate(workdir / f"own.jsonl.{ending}", workdir / f"clean.jsonl.{ending}", public, say=silent)
    with pa.input_stream(str(workdir / f"clean.jsonl.{ending}"), compression=codec) as stream:
        assert stream.read().decode() == lines[0] + lines[3]


def test_a_list_and_a_workbook_lose_the_same_rows(public, workdir):
    import openpyxl

    (workdir / "own.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    decontaminate(workdir / "own.json", workdir / "clean.json", public, say=silent)
    assert [row["text"] for row in json.loads((workdir / "clean.json").read_text())] == [TEXTS[0], TEXTS[3]]
    book = openpyxl.Workbook()
    for row in (["text", "n"], *([text, i] for i, text in enumerate(TEXTS))):
        book.active.append(row)
    book.create_sheet("Notes")["A1"] = "kept"
    book.save(workdir / "own.xlsx")
    decontaminate(workdir / "own.xlsx", workdir / "clean.xlsx", public, say=silent)
    clean = openpyxl.load_workbook(workdir / "clean.xlsx")
    assert [row[1] for row in clean.worksheets[0].values] == ["n", 0, 3] and clean["Notes"][
        "A1"
    ].value == "kept"


def test_prepared_data_of_your_own_counts_as_a_test_set_but_not_for_its_own_file(workdir):
    labels = {"up": "A rise of number", "down": "A fall of number"}
    with (workdir / "own.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "target"))
        writer.writerows(
            (f"{text} {i} in the books of the firm", label)
            for i in range(20)
            for label, text in labels.items()
        )
    recipe = Recipe.model_validate(
        {
            "custom_task": {
                "name": "way",
                "type": "classification",
                "labels": ["up", "down"],
                "instruction": "?",
            },
            "multi_task": {"task_weights": {"way": 1}},
            "data": {"tasks": {"way": {"file": "own.csv"}}},
        }
    )
    test = prepare(recipe, say=silent).records("way", "test")
    (workdir / "other.csv").write_bytes((workdir / "own.csv").read_bytes())
    found = decontaminate("other.csv", "clean.csv", recipe, say=silent)
    assert len(found.removed) == len(test) > 0
    with pytest.raises(DataError, match="no test set to compare with"):
        decontaminate("own.csv", "clean.csv", recipe, say=silent)


@pytest.mark.parametrize(
    ("name", "output", "error", "task"),
    [
        ("absent.csv", "out.csv", "There is no file", None),
        ("own.csv", "out.jsonl", "use the same kind", None),
        ("own.csv", "own.csv", "is the file itself", None),
        ("own.txt", "out.txt", "unknown kind", None),
        ("own.csv", "out.csv", "the recipe's tasks are", "sentimant"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(public, workdir, name, output, error, task):
    for existing in ("own.csv", "own.txt"):
        (workdir / existing).write_text(f"text\n{CLEAN}\n")
    with pytest.raises((DataError, ConfigError), match=error):
        decontaminate(name, output, public, task=task, say=silent)
    assert sorted(path.name for path in workdir.iterdir()) == ["own.csv", "own.txt", "raw"]


def test_test_sets_are_found_in_every_data_folder_and_each_dataset_is_read_once(public, workdir, monkeypatch):
    folder = workdir / "second" / "financial_phrasebank"
    folder.mkdir(parents=True)
    (folder / "Sentences_50Agree.txt").write_text(f"{CLEAN}@positive\n")
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(workdir / "second"))
    reads, read = Counter(), Dataset.read

    def counted(dataset, folder):
        reads[dataset.name] += 1
        return read(dataset, folder)

    monkeypatch.setattr(Dataset, "read", counted)
    (workdir / "own.csv").write_text(f"text\n{CLEAN}\n{TEST}\nSomething else\n")
    found = decontaminate(workdir / "own.csv", workdir / "clean.csv", public, say=silent)
    assert found.test_sets["financial_phrasebank"] == found.test_sets["twitter_financial_news"] == 1
    assert [row["row"] for row in found.removed] == [1, 2]
    assert set(reads.values()) == {1}  # PhraseBank too, which has no official test split


def test_the_command_prints_counts(public, workdir, capsys):
    (workdir / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = workdir / "recipe.yaml"
    recipe.write_text(f"data: {{dir: {public.data.dir}}}\n")
    assert (
        main(["data", "decontaminate", "own.jsonl", "--output-file", "o.jsonl", "--config", str(recipe)]) == 0
    )
    assert "3 of 5 rows removed; 2 kept in o.jsonl." in capsys.readouterr().out
