"""The command line: mistakes are one sentence and exit code 2, help is quick, nothing is lost."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fintune.allocator import library
from fintune.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    """An adapter on the tiny base, trained for two steps through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    here = os.getcwd()
    os.chdir(folder)
    try:
        flags = ["--config", str(CONFIGS / "debug.yaml"), "--output-dir=output/model", "--set"]
        assert main(["train", *flags, f"base_model.name={tiny_base}", "--set", "training.max_steps=2"]) == 0
    finally:
        os.chdir(here)
    return folder / "output" / "model"


def fails(capsys, *arguments, code=2):
    """The sentence with which a command fails."""
    assert main(list(arguments)) == code
    error = capsys.readouterr().err.strip()
    assert error.startswith("fintune: ") and "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--config", "absent.yaml"], ["no recipe at absent.yaml"]),
        (["train", "--set", "training.learning_rate=-1"], ["learning_rate must be > 0, got -1"]),
        (["train", "--set", "training.lerning_rate=1"], ["lerning_rate (set to 1)", "'learning_rate'"]),
        (["train", "--set", "training.lr=1"], ["training.lr (set to 1)", "'training.learning_rate'"]),
        (["train", "--set", "training.lora_r=8"], ["training.lora_r (set to 8)", "'lora_config.r'"]),
        (["train", "--set", "lora.r=8"], ["did you mean 'lora_config'?"]),
        (["train", "--set", "seed=8"], ["seed (set to 8)", "'training.seed'"]),
        (["train", "--set", "data.tasks.qa.path=a.csv"], ["did you mean 'data.tasks.qa.file'?"]),
        (["train", "--set", "base_model.name=nobody/nothing"], ["base_model.name is nobody/nothing"]),
        (["train", "--output_dir", "a-file"], ["output_dir is a-file, which is a file"]),
        (["run", "--output_dir", "a-file"], ["output_dir is a-file, which is a file"]),
        (["run", "--output_file", "a.txt"], ["output_file must end in .json, got a.txt"]),
        (["train", "--resume_from_checkpoint", "absent"], ["no checkpoint at absent"]),
        (["train", "--data_dir", "absent"], ["data.dir is absent, which is not a folder"]),
        (["train", "--set", "data.tasks.qa.file=empty.csv"], ["empty.csv is empty"]),
        (["train", "--set", "data.tasks.qa.file=absent.csv"], ["absent.csv"]),
        (["train", "--set", "data.tasks.headline.file=columns.csv"], ["no column 'text'", "headline, label"]),
        (["train", "--set", "data.tasks.headline.file=label.csv"], ["'sideways'", "bullish"]),
        (["evaluate", "--model_path", "absent"], ["no adapter at absent", "train.py"]),
        (["predict", "--task", "sentiment"], ["Give a text"]),
        (
            ["predict", "--task", "sentiment", "--input_file", "absent.csv"],
            ["There is no file or folder absent.csv"],
        ),
        (["predict", "--task", "sentiment", "--workers", "2", "Up"], ["--workers belongs to --ray"]),
        (["predict", "--task", "sentiment", "--input_file", "nowhere://x"], ["nowhere is unknown"]),
        (
            ["predict", "--task", "summarization", "10k.txt"],
            ["'10k.txt', the name of a file", "--document 10k.txt"],
        ),
        (["predict", "--task", "sentiment", "empty.csv"], ["--input_file empty.csv", "- < empty.csv"]),
        (["data", "download", "--dataset", "absent"], ["no dataset 'absent'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence_that_names_it(capsys, workdir, arguments, parts):
    (workdir / "a-file").write_text("x")
    (workdir / "empty.csv").write_text("")
    (workdir / "columns.csv").write_text("headline,label\nShares rise,bullish\n")
    (workdir / "label.csv").write_text("text,target\nShares rise,sideways\nShares fall,bearish\n")
    sentence = fails(capsys, *arguments)
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("trian", "fintune: there is no command 'trian'; did you mean 'train'? See  fintune --help"),
        ("data prepre", "fintune data: there is no action 'prepre'; did you mean 'prepare'? See"),
        ("--hepl", "fintune: there is no flag --hepl; did you mean --help? See"),
        (
            "train --output-dri x",
            "fintune train: there is no flag --output_dri; did you mean --output_dir? See",
        ),
        ("train --epochs 3", "no flag --epochs; did you mean --set training.num_train_epochs=3? See"),
        ("train --lr=1e-4", "no flag --lr; did you mean --set training.learning_rate=1e-4? See"),
        ("train --dataset a", "no flag --dataset; did you mean --set data.tasks.TASK.dataset=a? See"),
        ("train --model_name_or_path a", "did you mean --set base_model.name=a? See"),
        ("evaluate --max_tst 3", "there is no flag --max_tst; did you mean --max_test? See"),
        ("evaluate --model_name_or_path a", "did you mean --model_path? See"),
        ("predict --tsk qa Hello", "fintune predict: there is no flag --tsk; did you mean --task? See"),
        ("predict --task qa --lora_r 8 a", "fintune predict: there is no flag --lora_r. See"),
        ("export --format merge --output_dir x", "there is no --format 'merge'; did you mean 'merged'? See"),
        ("train again", "fintune train: there is no place for 'again' here. See  fintune train --help"),
        ("serve --max_batch x", "--max_batch: must be a whole number of at least 1, got x. See"),
        ("data", "fintune data: the following arguments are required: ACTION. See  fintune data --help"),
    ],
)
def test_a_misspelt_command_or_flag_is_one_line_with_the_nearest_right_one(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and sentence in error


def test_a_text_that_looks_like_a_flag_is_answered_after_two_dashes(capsys, workdir, adapter):
    flags = ["predict", "--task", "sentiment", "--model_path", str(adapter)]
    assert main([*flags, "--", "--year-on-year"]) == 0
    first = capsys.readouterr().out
    assert main([*flags, "--", "--year_on_year"]) == 0
    assert first != capsys.readouterr().out  # a text keeps its dashes


def test_every_alias_of_a_setting_names_a_key_of_the_recipe():
    from fintune.recipes import ALIASES, key_meant

    assert {key for key in ALIASES.values() if key_meant(key.rpartition(".")[2]) is None} == set()
    assert key_meant("num_train_epoch") == "training.num_train_epochs" and key_meant("zzz") is None


def test_a_full_disk_leaves_what_was_there(capsys, workdir, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "manifest.json")

    assert main(["data", "prepare", "--config", str(CONFIGS / "debug.yaml")]) == 0
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr("fintune.data.prepare.dataset.write_json", full)
    sentence = fails(capsys, "data", "prepare", "--force", "--config", str(CONFIGS / "debug.yaml"), code=1)
    assert "The disk is full" in sentence and "free some space" in sentence
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_file_is_answered_row_by_row_and_a_bad_row_has_its_error(capsys, workdir, adapter):
    rows = ["id,text", "a,Shares rise", "b,", f"c,{'profit ' * 900}", "d,Shares fall"]
    (workdir / "in.csv").write_text("\n".join(rows) + "\n")
    flags = ["--task", "headline", "--model_path", str(adapter), "--input_file", "in.csv"]
    assert main(["predict", *flags, "--output_file", "out.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output_file": "out.jsonl", "answers": 2}
    lines = [json.loads(line) for line in (workdir / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "in.csv:3", "c", "d"]
    assert lines[1]["error"] == "the text is empty"
    assert "there is room for" in lines[2]["error"]
    for line in (lines[0], lines[3]):
        assert line["prediction"] in line["probabilities"]
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    assert "the input itself" in fails(capsys, "predict", *flags, "--output_file", "in.csv")
    assert (workdir / "in.csv").read_text().startswith("id,text")
    (workdir / "wrong.csv").write_text("body\nShares rise\n")
    before = (workdir / "out.jsonl").read_text()
    flags[-1] = "wrong.csv"
    assert "no column 'text'" in fails(capsys, "predict", *flags, "--output_file", "out.jsonl")
    assert (workdir / "out.jsonl").read_text() == before


def test_one_text_is_answered_on_the_console_and_a_long_one_refused(capsys, workdir, adapter):
    flags = ["predict", "--task", "sentiment", "--model_path", str(adapter)]
    assert main([*flags, "Profit rose."]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["probabilities"]) == {"positive", "negative", "neutral"}
    assert "--truncate" in fails(capsys, *flags, "profit " * 900)
    assert main([*flags, "--truncate", "profit " * 900]) == 0


def test_standard_input_that_is_not_utf8_is_a_sentence_and_a_mark_at_its_beginning_is_none(
    capsys, workdir, adapter, monkeypatch
):
    def given(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    flags = ["predict", "--task", "sentiment", "--model_path", str(adapter)]
    given("Profit rose to £5m.".encode("cp1252"))
    assert "not UTF-8: byte 16 is 0xa3. Convert it first" in fails(capsys, *flags, "-")
    given(b"\xef\xbb\xbfProfit rose.")
    assert main([*flags, "-"]) == 0
    first = capsys.readouterr().out
    assert main([*flags, "Profit rose."]) == 0
    assert capsys.readouterr().out == first
    assert "half a character" in fails(capsys, *flags, "Profit rose \ud83d")


def test_an_adapter_is_evaluated_on_its_own_data_and_overrides_apply(capsys, workdir, adapter):
    flags = ["--model_path", str(adapter), "--set", "evaluation.base_model=false"]
    assert main(["evaluate", *flags, "--max_test", "2"]) == 0
    results = json.loads((adapter / "results.json").read_text())
    assert results["complete"] and set(results["tasks"]["qa"]["systems"]) == {"baseline", "adapter"}
    assert results["tasks"]["qa"]["systems"]["adapter"]["n"] == 2
    assert "built-in sample" in capsys.readouterr().out
    assert main(["evaluate", *flags, "--max_test", "2", "--output_file", "again.json", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (accuracy,) = [row for row in rows if (row["task"], row["metric"]) == ("headline", "accuracy")]
    assert accuracy["better"] == "higher" and 0 <= accuracy["adapter"] <= 1 and accuracy["base"] is None
    assert main(["compare", str(adapter), "again.json", "--json"]) == 0  # a folder, or a file
    compared = json.loads(capsys.readouterr().out)
    assert compared["tasks"]["headline"]["metrics"]["accuracy"]["difference"] == 0


def test_an_evaluation_that_cannot_be_written_is_refused_before_anything_is_loaded(
    capsys, workdir, adapter, monkeypatch
):
    monkeypatch.setattr(
        "fintune.data.prepare.dataset.prepare", lambda *_: pytest.fail("the data was prepared")
    )
    (workdir / "folder.json").mkdir()
    command = ["evaluate", "--model_path", str(adapter), "--output_file"]
    assert "folder.json, which is a folder" in fails(capsys, *command, "folder.json")
    assert "output_file must end in .json, got a.txt" in fails(capsys, *command, "a.txt")


def test_offline_for_us_is_offline_for_the_hub(capsys, workdir, monkeypatch):
    monkeypatch.setenv("FINTUNE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    fails(capsys, "predict", "--task", "sentiment")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(("setting", "allocator"), [(None, "mimalloc"), ("system", "system")])
def test_a_command_starts_again_with_mimalloc_unless_told_not_to_and_its_children_know_nothing(
    setting, allocator
):
    if library() is None or Path("/dev/nvidiactl").exists():
        pytest.skip("mimalloc is not used on this machine")
    code = (
        "import os, sys; from fintune.allocator import in_use, use_mimalloc\n"
        "use_mimalloc(); print(in_use(), sys.argv[1:], 'LD_PRELOAD' in os.environ)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "FINTUNE_ALLOCATOR")}
    environment |= {"FINTUNE_ALLOCATOR": setting} if setting else {}
    command = [sys.executable, "-c", code, "a b", "--c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{allocator} ['a b', '--c'] False\n"
