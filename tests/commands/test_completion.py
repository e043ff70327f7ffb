"""The completion script, sourced by a real shell and asked."""

import shutil
import subprocess

import pytest

from fintune.cli import main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
completer=$(complete -p fintune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$completer fintune "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def ask(workdir, capsys):
    """A function: words of a command line → what bash offers for the last of them."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "bash"]) == 0
    (workdir / "script").write_text(capsys.readouterr().out)

    def ask(*words):
        command = ["bash", "-c", ASK, "ask", "./script", "fintune", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return ask


def test_bash_completes_commands_actions_flags_choices_keys_tasks_and_files(ask, workdir):
    (workdir / "recipe.yaml").write_text("")
    (workdir / "adapters").mkdir()
    assert ask("ev") == ["evaluate"]
    assert ask("data", "pre") == ["prepare"]
    assert ask("data", "prepare", "--stri") == ["--strict"]
    assert ask("export", "--format", "g") == ["gguf"]
    assert ask("predict", "--task", "se") == ["sentiment"]
    assert ask("train", "--set", "training.learn") == ["training.learning_rate"]
    assert ask("train", "--config", "rec") == ["recipe.yaml"]
    assert ask("evaluate", "--model_path", "a") == ["adapters"]


@pytest.mark.parametrize(("shell", "sign"), [("zsh", "#compdef fintune"), ("fish", "complete -c fintune")])
def test_other_shells_have_a_script_with_every_command(capsys, shell, sign):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert sign in script and "from-feedback" in script and "--resume_from_checkpoint" in script
