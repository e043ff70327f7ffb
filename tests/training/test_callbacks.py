"""What a run shows: lines for a pipe, a bar for a terminal, and figures that say what they mean."""

import io
import math
from types import SimpleNamespace

import pytest

from fintune.config import Recipe
from fintune.progress import duration, sparkline
from fintune.tasks import task_set
from fintune.training import callbacks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def trained(monkeypatch):
    """A function: whether standard error is a terminal → what a run of four steps says and draws."""

    def run(terminal):
        drawn = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stderr", drawn)
        monkeypatch.setenv("COLUMNS", "80")
        said = []
        shown = callbacks.Progress(said.append, task_set(Recipe()))
        state = SimpleNamespace(
            global_step=0, max_steps=4, epoch=0.0, is_world_process_zero=True, log_history=[]
        )
        shown.on_train_begin(None, state, None)
        for step, loss in enumerate((2.0, 1.5, 1.0, 0.5), start=1):
            state.global_step = step
            state.log_history.append({"loss": loss})
            shown.on_step_end(None, state, None)
            shown.on_log(None, state, None, logs={"loss": loss, "qa_loss": 1.0, "examples_per_second": 12.25})
        figures = {"eval_loss": 0.4, "eval_qa_loss": 0.3, "eval_qa_f1": 0.5, "eval_regression_mse": 9.0}
        shown.on_log(None, state, None, logs=figures)
        shown.on_train_end(None, state, None)
        return said, drawn.getvalue()

    return run


def test_in_a_pipe_steps_are_lines_with_loss_speed_and_time_left_and_no_control_character(trained):
    said, drawn = trained(False)
    assert drawn == ""
    assert said[0].startswith("step 1/4 (25%): training loss 2.000, 12.2 examples/s, ")
    assert said[0].endswith(" left")
    text = "\n".join(said)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert max(map(len, text.splitlines())) <= 80
    assert "Validation loss at step 4/4, lower is better: 0.400 (qa 0.300)" in text
    assert "qa:             F1 (tokens) 0.500" in text and "MSE ↓ 9.000" in text
    assert said[-1] == "Training loss, lower is better: █▆▃▁ from 2.000 to 0.500"


def test_on_a_terminal_a_bar_has_the_steps_a_sparkline_the_speed_and_the_time_left(trained):
    said, drawn = trained(True)
    assert not [line for line in said if line.startswith("step ")]
    assert "0/4 steps" in drawn and " left" in drawn
    last = drawn.rstrip().splitlines()[-1].split("\r")[-1]
    assert "4/4 steps" in last and "loss █▆▃▁ 0.500, 12.2 examples/s, 00:00 left" in last


def test_a_sparkline_has_means_of_many_values_and_leaves_out_what_is_no_number():
    assert sparkline([3, 2, 1]) == "█▅▁" or sparkline([3, 2, 1]) == "█▄▁"
    assert sparkline(range(100), 4) == "▁▃▆█" and len(sparkline(range(100))) == 12
    assert sparkline([1, math.nan, 2, math.inf]) == "▁█"
    assert sparkline([5, 5]) == "▁▁" and sparkline([]) == ""
    assert [duration(value) for value in (None, 5, 600, 7200)] == ["–", "5 s", "10 min", "2.0 h"]
