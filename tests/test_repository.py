"""The repository: its commands answer, its map is true, and nothing large or machine-bound is in it."""

import ast
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from doors import DOORS
from forked import Forked

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "datasets", "pandas", "pyarrow", "numpy", "pydantic", "rich", "gradio")


def _run(*command, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout: the tracked files are unknown")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in names.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_is_over_one_megabyte(tracked):
    assert [str(path) for path in tracked if path.stat().st_size > 1_000_000] == []


def test_no_pickled_weights_are_tracked(tracked):
    assert [str(path) for path in tracked if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin"}] == []


@pytest.mark.parametrize(("door", "command"), DOORS.items())
def test_each_command_of_the_guide_answers_help(door, command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / door), "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))  # a door puts src/ in the place of its own folder
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / door), run_name="__main__")
    assert stopped.value.code == 0
    assert f"usage: fintune {command}" in capsys.readouterr().out
    assert sys.path[0] == str(ROOT / "src")


@pytest.mark.parametrize("door", ["train.py", "scripts/preprocess.py"])
def test_a_door_works_from_any_folder_without_an_installation(door, tmp_path):
    done = _run(ROOT / door, "--help", cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert f"usage: fintune {DOORS[door]}" in done.stdout


def test_a_root_script_does_not_shadow_a_library_of_its_name(tmp_path):
    """`evaluate.py` stands beside `train.py`, and `evaluate` is also a library that others import."""
    probe = tmp_path / "evaluate.py"
    probe.write_text(
        (ROOT / "train.py")
        .read_text()
        .replace("from fintune.cli import entry", "raise SystemExit(sys.path[0])")
    )
    assert _run(probe).stderr.strip() == str(tmp_path / "src")


def test_help_of_no_command_imports_anything_heavy():
    code = (
        "import contextlib, sys\n"
        "from fintune.cli import COMMANDS, main\n"
        "for name in ['', *(command.name for command in COMMANDS)]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*name.split(), '--help'])\n"
        f"    found = [heavy for heavy in {HEAVY} if heavy in sys.modules]\n"
        "    assert not found, (name, found)\n"
    )
    done = _run("-c", code, PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: fintune") > 15


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("data.datasets", "fintune.data.prepare.dataset:test_data_loading"),
        ("models.lora_config", "fintune.models.adapters:test_model_loading"),
    ],
)
def test_the_guides_import_paths_bring_the_packages_own_functions(module, function):
    home, _, name = function.partition(":")
    code = (
        f"from src.{module} import *\nimport {home} as own\nprint({name} is own.{name}, {name}.__module__)\n"
    )
    done = _run("-c", code, PYTHONPATH="")
    assert done.stdout.split() == ["True", home], done.stderr


@pytest.mark.parametrize(
    ("module", "function", "says"),
    [
        ("data.datasets", "test_data_loading", "built-in sample"),
        ("models.lora_config", "test_model_loading", "4,884,480 trainable"),
    ],
)
def test_the_guides_debug_commands_print_a_summary(module, function, says, tmp_path, monkeypatch):
    for folder in ("src", "configs"):  # a root of its own, so that no prepared data is written over
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    command = "import sys; sys.path.insert(0, ''); "  # as `python -c` does
    process = Forked(exec, f"{command}from src.{module} import *; {function}()", {}, FINTUNE_DATA_DIR="")
    said = process.stdout.read()
    assert process.wait(60) == 0, process.stderr.read()
    assert says in said


def test_every_direct_dependency_is_pinned_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for text in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_from_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fintune":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")


def test_one_version_stands_everywhere():
    import fintune

    said = {
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## ([\d.]+)",
        "deploy/compose.yaml": r"fintune:(.+)",
        "deploy/Dockerfile": r"-t fintune:(\S+) ",
        "deploy/kubernetes/base/kustomization.yaml": r"newTag: (.+)",
    }
    for name, pattern in said.items():
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found and found[1] == fintune.__version__, name


def test_an_installed_package_finds_its_default_recipe():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ((target, patterns),) = project["tool"]["setuptools"]["data-files"].items()
    assert target == "share/fintune/configs"
    assert ROOT / "configs" / "default.yaml" in [path for p in patterns for path in ROOT.glob(p)]


def test_every_test_that_the_threat_model_names_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for file, test in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"
