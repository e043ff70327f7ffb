"""The matrix peak: measured once a machine."""

import json

import pytest
import torch

from fintune.training.throughput import matrix_peak


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file that the peak is kept in; the process forgets what it has measured."""
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path))
    matrix_peak.cache_clear()
    yield tmp_path / "matrix_peak.json"
    matrix_peak.cache_clear()


def test_the_matrix_peak_is_measured_once_a_machine(cache):
    peak = matrix_peak()
    kept = json.loads(cache.read_text())
    assert max(kept.values()) == peak > 1e8
    assert all(f"torch {torch.__version__}" in key and "threads" in key for key in kept)
    cache.write_text(json.dumps(dict.fromkeys(kept, 1e30)))
    matrix_peak.cache_clear()  # as in another process
    assert matrix_peak() == 1e30


def test_a_peak_that_was_measured_on_a_busy_machine_is_measured_again(cache):
    kept = dict.fromkeys(json.loads(cache.read_text()) if matrix_peak() else {}, 1e6)
    cache.write_text(json.dumps(kept))
    matrix_peak.cache_clear()
    assert matrix_peak() > 1e8


@pytest.mark.parametrize("content", ["{", "[1]", '{"another machine": 5.0}'])
def test_a_damaged_or_another_machines_figure_is_not_taken(cache, content):
    cache.write_text(content)
    assert matrix_peak() > 1e8
