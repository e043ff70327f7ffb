"""`fintune init`: a user's own files in, a recipe out that prepares them."""

import json

import pytest
import yaml

from fintune.cli import main
from fintune.data.prepare.dataset import prepare
from fintune.recipes import load_recipe

HEADLINES = [f"{firm} {verb} its {what}" for firm in "ABCDEFGH" for verb in ("lifts", "cuts", "keeps")
             for what in ("outlook", "dividend", "price")]  # fmt: skip


def table(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")


def classification(folder):
    rows = [
        f"2024-{1 + n // 24:02}-{1 + n % 24:02},T{n},{text},{('Up', 'down', 'UP', 'down ', 'n/a')[n % 5]}"
        for n, text in enumerate(HEADLINES)
    ]
    table(folder / "moves_train.csv", "Date,Ticker,Headline,Direction", rows)
    return {"type": "classification", "labels": ["down", "up"]}


def regression(folder):
    rows = [f"{text};{n / 7:.2f}" for n, text in enumerate(HEADLINES)]
    table(folder / "moves.csv", "news;score", rows)
    return {"type": "regression"}


def questions(folder):
    rows = [{"context": text, "question": "What?", "answer": text.split()[-1]} for text in HEADLINES]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "qa"}


def summaries(folder):
    rows = [{"article": f"{text}. " * 8, "summary": text} for text in HEADLINES]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "summarization"}


def several(folder):
    rows = [
        f"{text},{('fed;rates', 'rates', 'fed;trade', 'trade')[n % 4]}" for n, text in enumerate(HEADLINES)
    ]
    table(folder / "topics.csv", "text,topics", rows)
    return {"type": "multilabel"}


def chats(folder):
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in HEADLINES
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "instruction"}


@pytest.mark.parametrize("make", [classification, regression, questions, summaries, several, chats])
def test_a_file_becomes_a_recipe_that_prepares_it(workdir, capsys, make):
    expected = make(workdir)
    [path] = workdir.iterdir()
    target = ["--target", "topics"] if make is several else []
    assert main(["init", path.name, "--yes", "--name", "own", *target]) == 0
    out = capsys.readouterr().out
    assert f"type        {expected['type']}" in out and "fintune train --config own.yaml" in out
    recipe = load_recipe("own.yaml")
    [task] = recipe.custom_task
    assert task.type == expected["type"]
    if "labels" in expected:
        assert sorted(task.labels) == expected["labels"] and "14 rows have n/a for a label" in out
    prepared = prepare(recipe, say=lambda line: None)
    counts = prepared.manifest["tasks"]["own"]["counts"]
    assert list(prepared.manifest["tasks"]) == ["own"], "no other task is trained beside it"
    assert min(counts.values()) > 0 and counts["train"] > 35


def test_an_official_test_file_stays_one_and_numbers_get_their_names(workdir, capsys):
    for part, texts in (("train", HEADLINES[:60]), ("test", HEADLINES[60:])):
        table(
            workdir / f"stance-{part}.csv",
            "sentence,year,label",
            [f"{t},2020,{n % 2}" for n, t in enumerate(texts)],
        )
    flags = ["--yes", "--labels", "0=dovish", "1=hawkish", "--output_file", "fed.yaml"]
    assert main(["init", "stance-train.csv", "stance-test.csv", *flags]) == 0
    raw = yaml.safe_load((workdir / "fed.yaml").read_text())
    assert raw["custom_task"]["labels"] == ["dovish", "hawkish"] and "stance" in raw["custom_task"]["name"]
    own = raw["data"]["tasks"]["stance"]
    assert own["test_file"] == "stance-test.csv" and own["labels"] == {"0": "dovish", "1": "hawkish"}
    assert prepare(load_recipe("fed.yaml")).manifest["tasks"]["stance"]["counts"]["test"] == 12

    assert main(["init", "stance-train.csv", *flags]) == 2, "a recipe is not written over"
    assert "fed.yaml exists" in capsys.readouterr().err


def test_what_is_not_plain_is_asked_for_in_one_sentence(workdir, capsys):
    table(workdir / "a.csv", "text,one,two", [f"{t},{n % 2},{n % 3}" for n, t in enumerate(HEADLINES)])
    rows = [f"{t},{n % 2},0{1 + n % 9}/05/2026" for n, t in enumerate(HEADLINES)]
    table(workdir / "dated.csv", "text,target,time", rows)
    for arguments, says in (
        (["a.csv"], "--target COLUMN; its columns are: text, one, two"),
        (["a.csv", "--target", "three"], "no column 'three'"),
        (["a.csv", "--target", "two", "--labels", "7=up"], "--labels names 7"),
        (["a.csv", "b.csv"], "one training file"),
        (["dated.csv"], "set  --time_format: day_first"),
    ):
        assert main(["init", "--yes", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_what_set_says_holds_with_debug_too(tmp_path):
    from fintune.cli import parser
    from fintune.commands.common import recipe_of

    (tmp_path / "r.yaml").write_text("training: {max_steps: 50}\ndata: {tasks: {qa: {dataset: sample}}}\n")
    said = ["training.max_steps=3", "training.warmup_steps=1", "data.tasks.qa.max_train=9"]
    words = ["train", "--config", str(tmp_path / "r.yaml"), "--debug", *(f"--set={each}" for each in said)]
    recipe = recipe_of(parser().parse_args(words))
    small = recipe.training
    assert (small.max_steps, small.warmup_steps, small.max_length, recipe.debug) == (3, 1, 256, True)
    assert (recipe.data.tasks["qa"].max_train, recipe.data.tasks["qa"].max_test) == (9, 8)
