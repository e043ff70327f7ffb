"""A commit is of the code that runs: no other file makes it a changed one."""

import subprocess

import pytest

from fintune import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a package as ours in it, and a function that runs git there."""
    code = tmp_path / "src" / "fintune" / "provenance.py"
    code.parent.mkdir(parents=True)
    code.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(code))
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    return tmp_path, code, git


def test_only_changes_of_files_that_git_knows_are_uncommitted_ones(repository):
    folder, code, _ = repository
    clean = provenance.git_commit()
    assert len(clean) == 40
    (folder / "my recipe.yaml").write_text("training: {}")
    (folder / "src" / "fintune" / "notes.txt").write_text("mine")
    assert provenance.git_commit() == clean
    code.write_text("# changed")
    assert provenance.git_commit() == clean + "+"


def test_the_commit_of_another_project_is_not_ours(repository):
    _, code, git = repository
    git("rm", "--cached", str(code))  # as a virtual environment in somebody's repository
    assert provenance.git_commit() is None
