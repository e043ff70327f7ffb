"""Instruction data: the three usual shapes become prompts and answers, and what is wrong is named."""

import json

import pytest

from fintune.data.raw.readers.own_file import read_inputs, read_own_file
from fintune.data.raw.readers.row_files import row_files
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.tasks.base import Prediction, Record
from fintune.tasks.registry import task_from_dict
from fintune.tasks.types import InstructionTask

TASK = InstructionTask("advise", "Be brief.")
CALL = {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"of": "ABC"}'}}
CALLED = [
    {"role": "user", "content": "What is ABC's price?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12.5", "tool_call_id": "c1"},
    {"role": "assistant", "content": "12.5."},
]


def read(path, *rows, columns=None):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = list(
        read_own_file(*row_files(path, "file"), TASK, columns or {}, "data.tasks.advise.columns", None)
    )
    return [i for i in items if isinstance(i, Record)], [i.why for i in items if isinstance(i, Dropped)]


def chat(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


SAME = [
    chat(("system", "Be exact."), ("user", "What is a bond?"), ("assistant", "A loan.")),
    {
        "conversations": [
            {"from": "system", "value": "Be exact."},
            {"from": "human", "value": "What is a bond?"},
            {"from": "gpt", "value": "A loan."},
        ]
    },
    {
        "instruction": "What is a bond?",
        "input": "",
        "output": "A loan.",
        "system": "Be exact.",
        "text": "all of it",
    },
    {"text": "What is a bond?", "target": "A loan.", "system": "Be exact."},
    {
        "messages": [
            {"role": "developer", "content": "Be exact."},
            {"role": "user", "content": [{"type": "text", "text": "What is a bond?"}]},
            {"role": "assistant", "content": "A loan."},
        ]
    },
]


@pytest.mark.parametrize("row", SAME)
def test_every_shape_gives_the_same_record(tmp_path, row):
    (record,), why = read(tmp_path / "f.jsonl", row)
    assert not why
    assert (record.text, record.target, record.system) == ("What is a bond?", "A loan.", "Be exact.")
    assert record.question is None


def test_parquet_holds_conversations_too(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**SAME[0], "group": "g"}]), tmp_path / "f.parquet")
    (record,) = read_own_file(*row_files(tmp_path / "f.parquet", "file"), TASK, {}, "", None)
    assert (record.text, record.target, record.group) == ("What is a bond?", "A loan.", "g")


def test_an_alpaca_input_follows_its_instruction(tmp_path):
    records, _ = read(
        tmp_path / "f.jsonl", {"instruction": "Shorten.", "input": "Sales rose.", "output": "Up."}
    )
    assert records[0].text == "Shorten.\n\nSales rose."


def test_the_last_answer_is_the_target_and_what_came_before_is_the_prompt(tmp_path):
    row = chat(
        ("user", "What is a bond?"),
        ("assistant", "A loan."),
        ("user", "To whom?"),
        ("assistant", "An issuer."),
        ("user", "Thanks."),
    )
    (record,), _ = read(
        tmp_path / "f.jsonl", {**row, "split": "test", "desk": "rates"}, columns={"group": "desk"}
    )
    assert (record.target, record.split, record.group) == ("An issuer.", "test", "rates")
    body = TASK.body(record)
    assert body == "User: What is a bond?\nAssistant: A loan.\n\nUser: To whom?"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (chat(("user", "Hello?")), "its messages have no turn of the user before an answer"),
        (chat(("assistant", "Hello.")), "its messages have no turn of the user before an answer"),
        (
            chat(("user", "a"), ("assistant", "b"), ("assistant", "c")),
            "its messages have two answers in a row",
        ),
        (
            chat(("user", "a"), ("narrator", "b"), ("assistant", "c")),
            "turn 2 of its conversation has the role 'narrator'",
        ),
        (chat(("user", ""), ("assistant", "c")), "turn 1 of its conversation has no text"),
        ({"messages": "a"}, "its conversation is not a list of turns"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_named(tmp_path, row, why):
    _, named = read(tmp_path / "f.jsonl", row)
    assert len(named) == 1 and named[0].startswith(why)


def test_a_file_of_no_known_shape_is_refused_with_the_shapes(tmp_path):
    with pytest.raises(
        DataError, match=r"no column 'text' .*Provide messages, conversations, or instruction"
    ):
        read(tmp_path / "f.jsonl", {"prompt": "a", "reply": "b"})


def test_to_predict_a_conversation_ends_with_its_last_question(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(
        json.dumps({**chat(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")), "id": 7})
    )
    (record,) = read_inputs(*row_files(path, "file"), TASK)
    assert (TASK.body(record), record.system, record.id) == ("User: a\nAssistant: b\n\nUser: c", "S", "7")


def test_the_datas_system_message_stands_in_the_prompt_in_place_of_the_tasks():
    template = PromptTemplate(load_tokenizer("smollm2-135m-instruct"), max_length=128)
    own = template.prompt_text(TASK, Record("What is a bond?", system="Be exact."))
    assert "Be exact." in own and "Be brief." not in own
    assert "Be brief." in template.prompt_text(TASK, Record("What is a bond?"))


def test_the_example_recipe_makes_a_sixth_task_without_code(tmp_path, monkeypatch):
    from pathlib import Path

    from fintune.data.prepare.dataset import prepare
    from fintune.recipes import load_recipe

    monkeypatch.chdir(Path(__file__).parents[4])
    config = load_recipe("configs/examples/instruction.yaml", [f"data.prepared_dir={tmp_path}/prepared"])
    prepared = prepare(config, say=lambda _: None)
    (task,) = prepared.task_set()
    assert (task.type, task.headline_metrics) == ("instruction", ("f1", "rougeL"))
    assert {split: len(prepared.records("advice", split)) for split in ("train", "validation", "test")} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    template = PromptTemplate(load_tokenizer("smollm2-135m-instruct"), config.training.max_length)
    for record in prepared.records("advice", "train"):
        example = template.example(task, record)
        assert not example.truncated and record.target in template.tokenizer.decode(example.completion_ids)


def test_the_last_question_is_never_cut():
    template = PromptTemplate(load_tokenizer("smollm2-135m-instruct"), max_length=96)
    record = Record("User: hello\nAssistant: " + "and so on " * 200, "Yes.", "User: Is it due in May?")
    example = template.example(TASK, record)
    assert example.truncated and len(example) <= 96
    assert "User: Is it due in May?" in template.tokenizer.decode(example.prompt_ids)


def test_with_all_answers_each_is_learnt_and_none_leaves_its_conversation(tmp_path):
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"))
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(chat(("user", "f"), ("assistant", "g"))))
    task = InstructionTask("own", "Be brief.", answers="all")
    records = list(read_own_file(*row_files(path, "file"), task, {}, "", None))
    assert [(r.target, json.loads(r.turns)) for r in records] == [
        ("b", [["user", "a"]]),
        ("d", [["user", "a"], ["assistant", "b"], ["user", "c"]]),
        ("g", [["user", "f"]]),
    ]
    assert records[0].group == records[1].group != records[2].group
    assert len({r.id for r in records}) == 3
    assert task_from_dict(task.to_dict()).every_answer and "answers" not in TASK.to_dict()
    with pytest.raises(ValueError, match="answers must be last or all, got 'some'"):
        InstructionTask("own", "Be brief.", answers="some")


@pytest.mark.parametrize(
    "change, why",
    [
        ({"tools": "[{"}, "its tools are not JSON"),
        ({"tools": [{"description": "of no name"}]}, "one of its tools has no name"),
        ({"tools": {"name": "price"}}, "its tools are not a list"),
        (
            {
                "messages": [
                    *CALLED[:1],
                    {**CALLED[1], "tool_calls": [{"function": {"name": "a", "arguments": "["}}]},
                ]
            },
            "turn 2 of its conversation has a call without a name or a JSON object of arguments",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_named(tmp_path, change, why):
    records, whys = read(tmp_path / "f.jsonl", {"messages": CALLED[:2], **change})
    assert not records and whys == [why]


def test_calls_of_tools_are_answers_and_turns_and_parquet_leaves_no_null_in_them(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tools = [{"name": "price", "parameters": {"type": "object"}}, {"name": "news", "description": "The news"}]
    pq.write_table(pa.Table.from_pylist([{"messages": CALLED, "tools": tools}]), tmp_path / "f.parquet")
    task = InstructionTask("advise", "Be brief.", answers="all")
    first, second = read_own_file(*row_files(tmp_path / "f.parquet", "file"), task, {}, "", None)
    assert first.target == '<tool_call>\n{"name": "price", "arguments": {"of": "ABC"}}\n</tool_call>'
    assert (second.question, second.target) == ("Tool: 12.5", "12.5.")
    held = json.loads(second.turns)
    assert held["tools"] == [{"type": "function", "function": tool} for tool in tools]
    assert [turn["role"] for turn in held["turns"]] == ["user", "assistant", "tool"] and "answer" not in held
    score = dict(task.metrics([first], [Prediction('{"name": "price", "parameters": {"of": "ABC"}}')]))
    assert score["f1"] == 1.0
