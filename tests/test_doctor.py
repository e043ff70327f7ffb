"""The doctor: true about this machine, plain about what is missing, silent about secrets."""

import builtins
import importlib.metadata
import subprocess
import sys

import pytest

from fintune import doctor


@pytest.fixture(scope="module")
def found():
    return {check.name: check for check in doctor.checks()}


def test_everything_required_works_where_the_suite_runs(found):
    failing = [str(c) for c in found.values() if c.required and not c.ok and c.name != "memory"]
    assert not failing
    assert "135 M parameters" in found["base model"].detail


def test_every_package_of_the_core_is_checked_against_its_lowest_version(found):
    lowest = doctor.requirements()
    assert set(lowest) <= set(found)
    assert {"torch", "transformers", "peft", "scikit-learn"} <= set(lowest)
    assert f"at least {lowest['torch']}" in found["torch"].detail


def test_a_package_that_is_too_old_or_missing_fails_with_the_fix(monkeypatch):
    versions = {"torch": "2.5.1+cu121", "transformers": None}
    real = importlib.metadata.version

    def version(package):
        found = versions.get(package, real(package) if package not in versions else None)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = {check.name: check for check in doctor._packages()}
    assert (
        str(packages["torch"])
        == f"✗ {'torch':<20} 2.5.1+cu121, but at least 2.6 is needed  →  pip install -U torch"
    )
    assert not packages["transformers"].ok and "not installed" in packages["transformers"].detail
    assert packages["numpy"].ok


@pytest.mark.parametrize(
    ("version", "lowest", "enough"),
    [("2.13.0+cpu", "2.6", True), ("5.0", "5.0.0", True), ("0.9", "0.18", False), ("3.0rc1", "2.9", True)],
)
def test_versions_are_compared_as_numbers(version, lowest, enough):
    assert (doctor._numbers(version) >= doctor._numbers(lowest)) is enough


def test_a_missing_torch_is_a_line_and_a_missing_optional_part_no_failure(monkeypatch):
    real_version, real_import = importlib.metadata.version, builtins.__import__

    def version(package):
        if package in ("torch", "wandb"):
            raise importlib.metadata.PackageNotFoundError(package)
        return real_version(package)

    def without_torch(name, *args, **kwargs):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(builtins, "__import__", without_torch)
    lines: list[str] = []
    assert doctor.run(lines.append) == 1
    failing = [line.split("  ")[0] for line in lines if line.startswith("✗")]
    assert set(failing) - {"✗ memory"} == {"✗ torch", "✗ device", "✗ base model"}
    assert any(line.startswith("– wandb") and "fintune[track]" in line for line in lines)
    assert lines[-1].startswith(f"{len(failing)} of the required checks fail")


def test_a_data_folder_that_holds_no_dataset_fails_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    check = doctor._data()
    assert not check.ok and str(tmp_path) in check.detail and "fintune data download" in check.fix


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
