"""What the page shows: answers as HTML, with everything from outside escaped."""

from fintune.demo import render
from fintune.tasks.base import Prediction, RegressionTask


def move(shares, unit="%", name="regression"):
    levels = [f"{level:+d}" for level in range(len(shares))]
    task = RegressionTask(name, "…", unit, levels, [float(level) for level in levels])
    mean = sum(share * float(level) for share, level in zip(shares, levels, strict=True))
    return render.number_answer(task, Prediction(mean, dict(zip(levels, shares, strict=True))))


def test_lines_with_a_dash_become_one_list_and_other_lines_paragraphs():
    html = render.text_answer("In short:\n- revenue rose\n\n- margin -2 points\nThat is all.")
    assert (
        "<p>In short:</p><ul><li>revenue rose</li><li>margin -2 points</li></ul><p>That is all.</p>" in html
    )


def test_a_generated_tag_is_shown_and_not_obeyed():
    html = render.text_answer("- <img src=x onerror=alert(1)>")
    assert "<img" not in html and "&lt;img src=x" in html


def test_an_empty_answer_says_so():
    assert "empty answer" in render.text_answer(" \n ")


def test_a_price_move_is_a_signed_percentage_with_the_range_of_most_of_its_probability():
    html = move([0.05, 0.5, 0.4, 0.05])
    assert "+1.45 %" in html and "Expected change in price on the next trading day" in html
    assert "at least 80 % of its probability between +1 % and +2 %" in html
    assert html.count("<i ") == 4


def test_a_certain_number_is_on_one_level_and_a_custom_task_has_its_own_unit():
    html = move([0.01, 0.98, 0.01], unit="bp", name="spread_change")
    assert "Expected value: 1.00 bp." in html and "probability on +1 bp;" in html


def test_the_central_range_leaves_out_at_most_a_tenth_at_either_end():
    assert render.central_range([0.1, 0.1, 0.6, 0.1, 0.1]) == (0, 3)
    assert render.central_range([0.09, 0.09, 0.64, 0.09, 0.09]) == (1, 3)
    assert render.central_range([1.0]) == (0, 0)
