"""The doctor: true about this machine, plain about what is missing, silent about secrets."""

import builtins
import importlib.metadata
import re
import subprocess
import sys

import pytest

from fintune import doctor
from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.errors import DataError


@pytest.fixture(scope="module")
def found():
    return {check.name: check for check in doctor.checks()}


def test_everything_required_works_where_the_suite_runs(found):
    failing = [str(c) for c in found.values() if c.required and not c.ok and c.name != "memory"]
    assert not failing
    assert "135 M parameters" in found["base model"].detail


def test_every_package_of_the_core_is_checked_against_its_lowest_version(found):
    wanted = {requirement.name: str(requirement.specifier) for requirement in doctor.requirements()}
    assert {"torch", "transformers", "peft", "scikit-learn"} <= set(wanted) <= set(found)
    assert f"({wanted['torch']} is needed)" in found["torch"].detail


@pytest.fixture
def installed(monkeypatch):
    """A function: package=version, or None where it is not installed."""
    real = importlib.metadata.version

    def install(**versions):
        def version(package):
            found = versions[package] if package in versions else real(package)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(package)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


@pytest.mark.parametrize(
    ("found", "ok"),
    [
        ("2.13.0+cpu", True),
        ("2.6", True),
        ("2.6.0", True),
        ("3.0rc1", True),
        ("2.5.1+cu121", False),
        (None, False),
    ],
)
def test_a_package_that_is_too_old_or_missing_fails_with_the_fix(installed, monkeypatch, found, ok):
    monkeypatch.setattr(doctor, "_base_model", lambda: doctor.Check("base model", True, "fine"))
    installed(torch=found)
    lines: list[str] = []
    doctor.run(lines.append)
    failing = [line for line in lines if line.startswith("✗ torch")]
    if ok:
        assert not failing
    elif found:
        assert failing == [f"✗ {'torch':<15} 2.5.1+cu121 (>=2.6 is needed)  →  pip install -U 'torch>=2.6'"]
    else:
        assert "not installed (>=2.6 is needed)" in failing[0]


def test_what_passes_is_a_line_a_group_and_failures_are_last(installed, monkeypatch):
    monkeypatch.setattr(doctor, "_base_model", lambda: doctor.Check("base model", True, "fine"))
    shown: list[str] = []
    doctor.run(shown.append)
    assert len(shown) <= 10 and sum("packages" in line for line in shown) == 1
    installed(numpy="1.0", wandb=None)
    lines: list[str] = []
    assert doctor.run(lines.append) == 1
    assert [line.split()[1] for line in lines if line.startswith("✗")][-1:] == ["numpy"]
    assert lines[-1].endswith("  →  pip install -U 'numpy>=2.0'") and len(lines) <= 10
    assert "1 of the required checks fails" in lines[-2]
    assert any(line.startswith("✓ optional parts") and "without wandb" in line for line in lines)
    installed(numpy="1.0", scipy="1.0", pandas=None, wandb=None)
    several: list[str] = []
    assert doctor.run(several.append) == 1 and len(several) <= 10
    assert "numpy, pandas, scipy are missing or too old  →  make setup" in several[-1]
    assert not any(line.startswith("✓ packages") for line in several)
    every: list[str] = []
    doctor.run(every.append, verbose=True)
    assert len(every) > 40 and any(line.startswith("✓ regex") for line in every)


def test_a_missing_torch_is_a_line_and_a_missing_optional_part_no_failure(installed, monkeypatch):
    real_import = builtins.__import__
    installed(torch=None, wandb=None)

    def without_torch(name, *args, **kwargs):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    lines: list[str] = []
    assert doctor.run(lines.append, verbose=True) == 1
    failing = [line.split("  ")[0] for line in lines if line.startswith("✗")]
    assert set(failing) - {"✗ memory"} == {"✗ torch", "✗ device", "✗ base model"}
    assert any(line.startswith("– wandb") and "pip install 'wandb>=" in line for line in lines)
    assert any(line.startswith(f"{len(failing)} of the required checks fail") for line in lines)
    assert lines[-len(failing) :] == [line for line in lines if line.startswith("✗")]


def test_a_data_folder_that_holds_no_dataset_fails_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    check = doctor._data()
    assert not check.ok and str(tmp_path) in check.detail and "fintune data download" in check.fix
    with pytest.raises(DataError, match=re.escape(check.detail)):  # as a run says it
        prepare(Recipe.model_validate({"data": {"prepared_dir": str(tmp_path / "out")}}))


def test_a_complete_dataset_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "financial_phrasebank").mkdir()
    (tmp_path / "financial_phrasebank" / "Sentences_50Agree.txt").write_text("Sales rose .@positive\n")
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    check = doctor._data()
    assert check.ok
    assert check.detail.startswith("financial_phrasebank in ")
    assert "built-in sample for headline" in check.detail and "sentiment" not in check.detail


def test_a_dataset_that_lacks_one_of_its_files_fails_by_name(tmp_path, monkeypatch):
    (tmp_path / "twitter_financial_news").mkdir()
    (tmp_path / "twitter_financial_news" / "sent_train.csv").write_text("text,label\n")
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    check = doctor._data()
    assert not check.ok and "twitter_financial_news" in check.detail and "twitter" in check.fix


def test_the_hub_token_is_reported_and_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    check = doctor._hub_token()
    assert check.ok and "verysecret" not in str(check)


def test_importing_the_doctor_loads_nothing_heavy():
    code = (
        "import sys, fintune.doctor; print({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
