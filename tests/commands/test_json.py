"""`--json`: one object on standard output and nothing else; and the exit codes of every command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fintune.cli import main, parser
from fintune.commands.common import plain
from fintune.errors import EXIT_CODES, CheckFailed, DataError, FintuneError

CONFIGS = Path(__file__).parents[2] / "configs"
WITHOUT = {
    "init",  # asks questions
    "average",
    "demo",
    "serve",
    "keys create",  # prints the key alone
    "keys revoke",
    "monitor profile",
    "data download",
    "data from-feedback",
    "completion",
}
"""Commands that print no table and find nothing out."""


def commands(of=None, name=""):
    """Every command, or action of a command, with its parser."""
    of = of or parser()
    if of._subparsers is None:
        yield name, of
        return
    for word, below in of._subparsers._group_actions[0].choices.items():
        yield from commands(below, f"{name} {word}".strip())


def test_every_command_that_prints_a_table_has_json_with_help():
    lacking = {name for name, found in commands() if "--json" not in found._option_string_actions}
    assert lacking == WITHOUT & {name for name, _ in commands()}


def test_the_page_of_commands_names_each_of_them():
    page = (CONFIGS.parent / "docs" / "cli.md").read_text()
    assert all(f"| `fintune {name.split()[0]}` |" in page for name, _ in commands())


def test_every_flag_has_a_help_text_that_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, found in commands():
        silent = [action.dest for action in found._actions if not action.help]
        assert not silent, (name, silent)
        assert max(map(len, found.format_help().splitlines())) <= 80, name


def answer(capsys, *command, code=0):
    """The object that a command prints with `--json`."""
    assert main([*command, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_data_is_listed_and_prepared_as_json_and_notices_go_elsewhere(capsys, workdir):
    listed = answer(capsys, "data", "list")
    assert {each["name"] for each in listed["datasets"]} >= {"sample", "fiqa_sa"}
    assert next(each for each in listed["datasets"] if each["name"] == "tatqa")["default_of"] is None
    command = ["data", "prepare", "--config", str(CONFIGS / "debug.yaml"), "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "Prepared data: " in err
    counts = json.loads(out)["tasks"]["qa"]["counts"]
    assert all(isinstance(count, int) for count in counts.values()) and counts["train"] > 0


def test_keys_are_listed_without_their_secrets(capsys, workdir):
    main(["keys", "create", "--name", "desk", "--rate", "9", "--keys", "keys.json"])
    capsys.readouterr()
    (key,) = answer(capsys, "keys", "list", "--keys", "keys.json")["keys"]
    assert (key["name"], key["rate"], key["revoked"], key["admin"]) == ("desk", 9, None, False)
    assert not {"hash", "salt"} & set(key)


def test_the_doctor_answers_in_json_and_its_exit_code_says_whether_all_is_well(capsys, monkeypatch):
    from fintune import doctor

    checks = [doctor.Check("disk", True, "fine"), doctor.Check("torch", False, "absent", "make setup")]
    monkeypatch.setattr(doctor, "checks", lambda: iter(checks))
    found = answer(capsys, "doctor", code=1)
    assert found["ok"] is False and found["checks"][1]["fix"] == "make setup"


def test_values_are_json_alone():
    value = {"a": math.nan, "b": np.float32(0.5), "c": np.array([1, 2]), "d": Path("x"), 1: (math.inf, None)}
    assert plain(value) == {"a": None, "b": 0.5, "c": [1, 2], "d": "x", "1": [None, None]}
    assert plain([True, np.bool_(True), 3]) == [True, True, 3]


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("no"), 2), (CheckFailed("no"), 1), (FintuneError("full"), 1), (KeyboardInterrupt(), 130)],
)
def test_an_error_carries_its_exit_code_and_the_help_explains_each(capsys, monkeypatch, error, code):
    def fail(args):
        raise error

    monkeypatch.setattr("fintune.commands.data._list", fail)
    assert main(["data", "list", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err and code in EXIT_CODES
    told = " ".join(parser().format_help().split())
    assert all(f"{number} {meaning}" in told for number, meaning in EXIT_CODES.items())
    page = (CONFIGS.parent / "docs" / "cli.md").read_text()
    assert all(f"| {number} | {meaning} |" in page for number, meaning in EXIT_CODES.items())
