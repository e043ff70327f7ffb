"""Readers: small files of our own in each dataset's shape, and what is wrong with a row is named."""

import json

import pytest
from raw_files import archive, parts

from fintune.data.raw.readers.ectsum import ectsum
from fintune.data.raw.readers.own_file import read_own_file
from fintune.data.raw.readers.public import (
    financial_phrasebank,
    financial_qa_10k,
    fiqa_sa,
    fiqa_sentiment,
    tatqa,
    twitter_financial_news,
    twitter_sentiment,
)
from fintune.data.raw.readers.row_files import row_files
from fintune.data.raw.readers.stocknet import stocknet
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.tasks.types import ClassificationTask, QATask, RegressionTask

TOPIC = ClassificationTask("topic", "Name the topic.", ("good", "bad"))


def test_phrasebank_drops_its_byte_order_mark_and_keeps_the_shared_test_split(tmp_path):
    from datasets import Dataset

    lines = [f"Sales of unit {i} rose , we are at a@b .@positive" for i in range(41)]
    path = tmp_path / "s.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    records, dropped = parts(financial_phrasebank(path))
    assert not dropped
    assert (records[0].text, records[0].target) == ("Sales of unit 0 rose , we are at a@b .", "positive")
    shared = Dataset.from_dict({"line": lines}).train_test_split(seed=42)["test"]["line"]
    ours = [f"{r.text}@{r.target}" for r in records if r.split == "test"]
    assert sorted(ours) == sorted(shared) and len(ours) == 11


def test_phrasebank_names_a_line_without_a_label(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("Profit rose .@positive\nProfit fell .\n")
    _, dropped = parts(financial_phrasebank(path))
    assert dropped == [Dropped("malformed rows", "s.txt:2", "it has no @ before a label")]


def test_twitter_labels_are_named_links_are_shortened_and_lines_are_counted(tmp_path):
    train, valid = tmp_path / "train.csv", tmp_path / "valid.csv"
    train.write_text('text,label\n"$AB cut\nat a broker https://t.co/aB3",0\n$CD up,1\n$EF,7\n$GH\n')
    valid.write_text("text,label\n$EF flat https://t.co/x…,2\n")
    records, dropped = parts(twitter_financial_news(train, valid))
    assert [(r.text, r.target, r.split, r.id) for r in records] == [
        ("$AB cut\nat a broker [link]", "bearish", "train", "train.csv:2"),
        ("$CD up", "bullish", "train", "train.csv:4"),
        ("$EF flat [link]", "neutral", "test", "valid.csv:2"),
    ]
    assert [(d.where, d.why) for d in dropped] == [
        ("train.csv:5", "the label '7' is none of 0, 1, 2"),
        ("train.csv:6", "it has 1 cells, but the header has 2"),
    ]


def test_a_public_file_without_its_column_is_refused(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text("question,reply\nWhy?,So.\n")
    with pytest.raises(DataError, match=r"no column 'answer', only: question, reply"):
        list(financial_qa_10k(path))


def test_financial_qa_groups_by_company(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text("question,answer,context,ticker,filing\nHow many?,Nine.,We have nine.,AB,2023\n")
    records, _ = parts(financial_qa_10k(path))
    assert records[0].text == "We have nine." and records[0].question == "How many?"
    assert (records[0].target, records[0].group) == ("Nine.", "AB")


def test_fiqa_keeps_a_sentence_together_and_names_a_bad_score(tmp_path):
    info = [{"target": "AB", "sentiment_score": "-0.4"}, {"target": "CD", "sentiment_score": "0.7"}]
    rows = {
        "1": {"sentence": "CD takes a deal from AB", "info": info},
        "2": {"sentence": "EF", "info": [{"target": "EF", "sentiment_score": "3"}]},
        "3": {"info": []},
    }
    path = tmp_path / "task1_post_ABSA_test.json"
    path.write_text(json.dumps(rows))
    records, dropped = parts(fiqa_sa(path))
    assert [(r.text, r.target) for r in records] == [
        ("CD takes a deal from AB\nTarget: AB", -0.4),
        ("CD takes a deal from AB\nTarget: CD", 0.7),
    ]
    assert records[0].group == records[1].group and records[0].split == "test"
    assert [d.why for d in dropped] == ["its score 3.0 is not in [-1, 1]", "it lacks a sentence or its info"]


def test_fiqas_scores_become_labels_at_the_benchmarks_thresholds(tmp_path):
    scores = {"-0.11": "negative", "-0.1": "neutral", "0.0999": "neutral", "0.1": "positive"}
    info = [{"target": score, "sentiment_score": score} for score in scores]
    path = tmp_path / "task1_headline_ABSA_train.json"
    path.write_text(json.dumps({"1": {"sentence": "AB", "info": info}}))
    records, _ = parts(fiqa_sentiment(path))
    assert {r.text.rpartition(" ")[2]: r.target for r in records} == scores
    assert len({r.group for r in records}) == 1 and {r.source for r in records} == {"fiqa_sentiment"}


def test_twitters_directions_are_a_sentiment_too(tmp_path):
    train, valid = tmp_path / "train.csv", tmp_path / "valid.csv"
    train.write_text("text,label\n$AB,0\n$CD,1\n")
    valid.write_text("text,label\n$EF,2\n")
    records, _ = parts(twitter_sentiment(train, valid))
    assert [r.target for r in records] == ["negative", "positive", "neutral"]


def tatqa_file(path, *questions, table=(["", "2019"], ["Sales", "4.1"]), uid="t"):
    usual = {"question": "Sales?", "answer_type": "span", "derivation": "", "scale": ""}
    entry = {
        "table": {"uid": uid, "table": table},
        "paragraphs": [{"order": 2, "text": "b"}, {"order": 1, "text": "a"}],
        "questions": [{**usual, "order": i, **question} for i, question in enumerate(questions, start=1)],
    }
    path.write_text(json.dumps([entry, {"table": None}]))
    return path


def test_tatqa_gives_an_answer_its_scale_and_keeps_its_type_and_derivation(tmp_path):
    million = {"scale": "million"}
    path = tatqa_file(
        tmp_path / "tatqa_dataset_dev.json",
        {"answer": ["$  4.1"], **million},
        {"answer": -1234.5, "answer_type": "arithmetic", "derivation": "1 -  1,235.5", "scale": "thousand"},
        {"answer": -22.2, "scale": "percent"},
        {"answer": ["3.1%"], "scale": "percent"},
        {"answer": ["106.4", "", "70.5"], **million},
        {"answer": "2", "answer_type": "count"},
        {"answer": []},
        {"answer": None},
    )
    records, dropped = parts(tatqa(path))
    assert records[0].text == "Sales | 2019: 4.1\na\nb" and records[0].group == "t"
    answers = ["$4.1 million", "-1,234.5 thousand", "-22.2%", "3.1%", "106.4 million; 70.5 million", "2"]
    assert [r.target for r in records] == answers
    assert (records[1].kind, records[1].derivation) == ("arithmetic", "1 - 1,235.5")
    assert [d.where.rpartition(":")[2] for d in dropped] == ["0.7", "0.8", "1"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["dev"], [None]),
        (["dev", "train"], ["test", "train"]),
        (["dev", "test_gold"], ["train", "test"]),
        (["dev", "train", "test_gold"], ["validation", "train", "test"]),
    ],
)
def test_tatqas_official_parts_are_its_splits_where_they_are_at_hand(tmp_path, names, splits):
    for name in names:
        tatqa_file(tmp_path / f"tatqa_dataset_{name}.json", {"answer": ["4.1"]})
    records, _ = parts(tatqa(*(tmp_path / f"tatqa_dataset_{name}.json" for name in names)))
    assert [r.split for r in records] == splits


def test_a_list_cut_short_is_refused(tmp_path):
    path = tmp_path / "tatqa_dataset_dev.json"
    path.write_text('[{"table": {"uid"')
    with pytest.raises(DataError, match=r"tatqa_dataset_dev.json is not valid JSON .*: download it again"):
        list(tatqa(path))
    path.write_text('{"table": 1}')
    with pytest.raises(DataError, match="does not hold a JSON list"):
        list(tatqa(path))


def test_ectsum_pairs_files_by_name_and_ignores_everything_else(tmp_path):
    base = "data/final"
    path = archive(
        tmp_path / "e.tar.gz",
        {
            f"{base}/train/ects/B_q1.txt": "Hello.\nSales rose.\n",
            f"{base}/train/gt_summaries/B_q1.txt": "sales rose.\n",
            f"{base}/val/ects/C_q1.txt": "Hello.",
            f"{base}/test/ects/deeper/D_q1.txt": "out",
            "README.md": "out",
        },
        links=[("latest", f"{base}/test")],
    )
    records, dropped = parts(ectsum(path))
    assert [(r.text, r.target, r.split) for r in records] == [("Hello.\nSales rose.", "sales rose.", "train")]
    assert [(d.where, d.why) for d in dropped] == [("e.tar.gz:val/C_q1", "it has no summary")]
    assert [p.name for p in tmp_path.iterdir()] == ["e.tar.gz"]


def test_a_truncated_archive_is_refused(tmp_path):
    path = archive(tmp_path / "e.tar.gz", {"data/final/train/ects/A.txt": "sales rose, " * 5000})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        list(ectsum(path))


# Marks that Python's splitlines takes for line ends, but that stand inside lines of these files.
ODD = "a\u2028b\x85c\x0cd"


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes(f"{ODD}@positive\r\nProfit fell .@negative\r\n".encode())
    records, dropped = parts(financial_phrasebank(path))
    assert [r.text for r in records] == [ODD, "Profit fell ."] and not dropped

    path = tmp_path / "f.csv"
    path.write_bytes(f'text,target\r\n{ODD},good\r\n"two\r\nlines",bad\r\n{ODD}\r\n'.encode())
    records, dropped = own(path)
    assert [(r.text, r.id) for r in records] == [(ODD, "f.csv:2"), ("two\nlines", "f.csv:3")]
    assert [d.where for d in dropped] == ["f.csv:5"]

    line = {"text": [ODD], "created_at": "Wed Jul 29 10:00:00 +0000 2015"}
    files = {
        "tweet/preprocessed/AB/2015-07-29": json.dumps(line, ensure_ascii=False) + "\n",
        "price/raw/AB.csv": "Date,Adj Close\r\n2015-07-29,100\r\n2015-07-30,110\r\n",
    }
    records, dropped = parts(stocknet(archive(tmp_path / "s.tar.gz", files)))
    assert [r.text for r in records] == [f"Tweets on $AB:\n- {ODD}"]
    assert not [d for d in dropped if d.reason == "malformed rows"]


# A user's own file ---------------------------------------------------------------------------------


def own(path, task=TOPIC, columns=None, split=None):
    return parts(
        read_own_file(*row_files(path, "file"), task, columns or {}, f"data.tasks.{task.name}.columns", split)
    )


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind):
    rows = [{"body": "Sales rose, a lot", "label": "good", "part": "dev"}, {"body": "b", "label": "bad"}]
    path = tmp_path / f"f.{'csv' if kind == 'semicolons' else kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8-sig")
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind]
        lines = [("body", "label", "part"), ('"Sales rose, a lot"', "good", "dev"), ("b", "bad", "")]
        path.write_text("".join(mark.join(line) + "\n" for line in lines), encoding="utf-8-sig")
    records, dropped = own(path, columns={"text": "body", "target": "label", "split": "part"})
    assert not dropped
    assert [(r.text, r.target, r.split) for r in records] == [
        ("Sales rose, a lot", "good", "validation"),
        ("b", "bad", None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "parts_of_message"),
    [
        ("f.csv", "", ["f.csv is empty"]),
        ("f.jsonl", "\n\n", ["f.jsonl holds no JSON object"]),
        ("f.json", '{"text": {"0": "a"}}', ["f.json does not hold a JSON list", "write a list of objects"]),
        ("f.doc", "x", ["unknown kind", ".csv, .tsv, .jsonl"]),
        ("f.parquet", "no", ["f.parquet is not a Parquet file"]),
        (
            "f.csv",
            "text,sentiment\na,good\n",
            ["no column 'target'", "text, sentiment", "{target: sentiment}"],
        ),
        ("f.csv", "texts,target\na,good\n", ["no column 'text'", "texts, target", "{text: texts}"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, name, content, parts_of_message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        own(path)
    for part in parts_of_message:
        assert part in str(caught.value)


def test_spaces_around_a_columns_name_do_not_matter(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("text, label\nSales rose,good\n")
    records, dropped = own(path, columns={"target": "label"})
    assert [(r.text, r.target) for r in records] == [("Sales rose", "good")] and not dropped


def test_a_mapped_column_must_exist_and_a_field_must_be_known(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("text,target\na,good\n")
    with pytest.raises(DataError, match="no column 'company' for the group"):
        own(path, columns={"group": "company"})
    with pytest.raises(DataError, match="unknown field 'txt'"):
        own(path, columns={"txt": "text"})
    with pytest.raises(DataError, match="no column 'question' for the question of task q"):
        own(path, QATask("q", "Answer."))


def test_malformed_rows_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a", "target": 1.5}\n{"text": "b"\n[1]\n{"text": "c", "target": "x"}\n')
    records, dropped = own(path, RegressionTask("r", "Predict."))
    assert [r.target for r in records] == [1.5]
    assert [d.where for d in dropped] == ["f.jsonl:2", "f.jsonl:3", "f.jsonl:4"]
    assert dropped[2].why == "the target 'x' is not a number"


def test_a_time_is_kept_in_utc_and_one_that_is_none_is_named(tmp_path):
    path = tmp_path / "f.csv"
    times = ("2015-07-31", "2015-07-31T16:00:00-04:00", "2015-07-31 20:00", "", "31.7.")
    path.write_text("text,target,when\n" + "".join(f"a,good,{time}\n" for time in times))
    records, dropped = own(path, columns={"time": "when"})
    utc = "2015-07-31T20:00:00+00:00"
    assert [r.time for r in records] == ["2015-07-31", utc, utc, ""]
    assert dropped[0].why.startswith("the time '31.7.' is not a date such as 2015-07-31")


def test_a_parquet_files_own_times_are_taken(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2015, 7, 31)
    noon = datetime.datetime(2015, 7, 31, 12, tzinfo=datetime.UTC)
    for time, expected in ((day, "2015-07-31"), (noon, "2015-07-31T12:00:00+00:00")):
        pq.write_table(pa.table({"text": ["a"], "target": ["good"], "time": [time]}), tmp_path / "f.parquet")
        assert own(tmp_path / "f.parquet")[0][0].time == expected


def test_a_column_that_begins_late_in_a_jsonl_file_is_found(tmp_path):
    path = tmp_path / "f.jsonl"
    first = '{"text": "a", "target": "good"}\n' * 1500
    path.write_text(first + '{"text": "b", "target": "bad", "split": "test", "company": "AB"}\n')
    records, _ = own(path, columns={"group": "company"})
    assert (records[0].split, records[-1].split, records[-1].group) == (None, "test", "AB")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_reading_a_file_takes_no_memory_for_its_size(tmp_path, kind):
    import tracemalloc

    text = "Sales rose and so did costs. " * 10
    rows = [{"text": f"{i} {text}", "target": "good"} for i in range(20_000)]
    path = tmp_path / f"f.{kind}"
    if kind == "csv":
        path.write_text("text,target\n" + "".join(f"{row['text']},good\n" for row in rows))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2_000)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    del rows
    next(read_own_file(*row_files(path, "file"), TOPIC, {}, "", None))  # what is imported is not counted
    tracemalloc.start()
    count = sum(1 for _ in read_own_file(*row_files(path, "file"), TOPIC, {}, "", None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 3e6  # the file's texts alone are 6 MB
