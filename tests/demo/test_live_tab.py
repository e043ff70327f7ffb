"""What the live tab makes of the rows of a live run."""

from fintune.demo import live_tab

ROW = {
    "seen": "2026-11-25T03:10:00+00:00",
    "published": "",
    "source": "Example Wire",
    "title": "Northvale <b>raises</b> its outlook",
    "link": "https://example.com/a?b=1&c=2",
    "symbols": ["NVL"],
    "alert": "bullish at 93 %",
    "answers": {
        "headline": {"label": "bullish", "confidence": 0.934},
        "regression": {"value": 1.25, "low": -0.5, "high": 3.0},
    },
}


def test_a_row_shows_its_answers_and_what_is_foreign_is_text():
    html = live_tab.items([ROW])
    assert "2026-11-25 03:10" in html and "bullish 93%" in html and "+1.25 [-0.50, +3.00]" in html
    assert "Northvale &lt;b&gt;raises&lt;/b&gt;" in html and "bullish at 93 %" in html
    assert 'href="https://example.com/a?b=1&amp;c=2"' in html and 'rel="noopener noreferrer"' in html


def test_a_link_that_leads_nowhere_on_the_web_is_none():
    assert "<a " not in live_tab.items([{**ROW, "link": "javascript:alert(1)"}])


def test_an_item_without_an_answer_of_a_task_has_an_empty_cell_and_an_error_is_shown():
    html = live_tab.items([ROW, {**ROW, "answers": {"headline": {"error": "the text is empty"}}}])
    assert "the text is empty" in html and html.count("<td></td>") == 1


def test_the_scorecard_has_each_figure_with_its_interval_and_number_of_answers():
    figures = {"hit_rate": {"value": 0.6, "interval": [0.4, 0.8], "n": 12}}
    figures["mse"] = {"value": 2.0, "interval": None, "n": 3}
    html = live_tab.scorecard({"figures": figures})
    assert "hit rate" in html and "[0.400, 0.800]" in html and ">12<" in html
    assert live_tab.scorecard({"figures": {}}) == ""


def test_without_a_folder_the_page_says_which_command_makes_one(tmp_path):
    assert "fintune live --feed URL --output" in live_tab.page(tmp_path / "absent")
