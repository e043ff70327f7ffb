"""What the page shows: answers as HTML, with everything from outside escaped."""

import re

from fintune.data.documents.passages import Document, Passage
from fintune.demo import render
from fintune.inference.documents import DocumentAnswer, Question, Source
from fintune.tasks.base import Prediction, Record
from fintune.tasks.types import QATask, RegressionTask, SummarizationTask


def move(shares, interval, unit="%", name="regression"):
    levels = [f"{level:+d}" for level in range(len(shares))]
    task = RegressionTask(name, "…", unit, levels, [float(level) for level in levels])
    mean = sum(share * float(level) for share, level in zip(shares, levels, strict=True))
    return render.number_answer(task, Prediction(mean, dict(zip(levels, shares, strict=True)), interval))


def test_lines_with_a_dash_become_one_list_and_other_lines_paragraphs():
    html = render.text_answer("In short:\n- revenue rose\n\n- margin -2 points\nThat is all.")
    assert (
        "<p>In short:</p><ul><li>revenue rose</li><li>margin -2 points</li></ul><p>That is all.</p>" in html
    )


def test_a_minus_before_a_figure_is_no_bullet():
    assert "<p>-5 % growth</p><ul><li>-3 % in Asia</li></ul>" in render.text_answer(
        "-5 % growth\n- -3 % in Asia"
    )


def test_a_generated_tag_is_shown_and_not_obeyed():
    html = render.text_answer("- <img src=x onerror=alert(1)>")
    assert "<img" not in html and "&lt;img src=x" in html


def test_an_empty_answer_says_so():
    assert "empty answer" in render.text_answer(" \n ")


def test_a_price_move_is_a_signed_percentage_with_the_range_of_most_of_its_probability():
    html = move([0.05, 0.5, 0.4, 0.05], (1.0, 2.0))
    assert "+1.45 %" in html and "Expected change in price on the next trading day" in html
    assert "80 % of its probability between +1.00 % and +2.00 %" in html
    assert html.count('class="bar"') == 4 and html.count('class="band"') == 1


def test_a_certain_number_is_on_one_level_and_a_custom_task_has_its_own_unit():
    html = move([0.01, 0.98, 0.01], (1.0, 1.0), unit="bp", name="spread_change")
    assert "Expected value: 1.00 bp." in html and "probability at 1.00 bp." in html


def test_the_interval_and_the_levels_share_one_scale():
    html = move([0.1, 0.2, 0.3, 0.4], (0.5, 2.5))

    def left(part):
        return float(re.search(f'<rect class="{part}" x="([0-9.]+)"', html[html.index(part) - 20 :])[1])

    bars = [float(x) for x in re.findall(r'class="bar" x="([0-9.]+)"', html)]
    assert abs(left("band") - bars[1]) < 1  # +1's bar begins in the middle between +0 and +1
    dot = float(re.search(r'class="dot" cx="([0-9.]+)"', html)[1])
    assert abs(dot - bars[3 - 1] - (bars[3] - bars[2]) / 2) < 1  # the mean is 2, the middle of +2's bar


def test_labels_are_bars_from_the_most_to_the_least_probable():
    html = render.label_answer(Prediction("b", {"a": 0.25, "b": 0.75}))
    assert html.index("<span>b</span>") < html.index("<span>a</span>")
    assert "width:75.0%" in html and "<em>25%</em>" in html


def test_bullets_link_to_their_marked_sentences_and_an_invented_figure_is_warned_of():
    task = SummarizationTask("summarization", "…")
    record = Record("Hello. Revenue was $5 <b>million</b>. Bye.")
    html = render.answer(task, record, Prediction("- revenue $5 million\n- eps $9.99"))
    assert 'href="#ft-summarization-1"' in html and 'id="ft-summarization-1"' in html
    assert "<mark><sup>1</sup>Revenue was $5 &lt;b&gt;million&lt;/b&gt;.</mark>" in html
    assert "not in the text: 9.99" in html and html.count("no source found") == 1


def test_an_answer_is_marked_in_its_passage():
    html = render.passage_answer("Cash was $3.3 million & debt 4.", "$3.3 million")
    assert "Cash was <mark>$3.3 million</mark> &amp; debt 4." in html
    assert "does not have the words" in render.passage_answer("Cash was low.", "No idea")


def test_marks_that_overlap_do_not_repeat_text():
    assert render.marked("abcdef", [((0, 4), "1"), ((2, 6), "2"), ((0, 4), "2")]) == (
        "<mark><sup>1</sup><sup>2</sup>abcd</mark>ef"
    )


def test_a_report_in_a_frame_can_load_nothing_and_cannot_leave_it():
    html = render.frame('<html><head lang="en"><title>x</title></head>"</html>', "Report")
    assert 'sandbox="allow-scripts"' in html and "default-src &#x27;none&#x27;" in html
    for page in (
        "<script>1</script><html><head>",
        '<head data-x=">"><script>1</script>',
        "<!--<head>--><p>a",
    ):
        framed = render.frame(page, "Report")
        assert framed.index("Content-Security-Policy") < framed.index(page[:5].replace("<", "&lt;"))
    assert html.count('"') % 2 == 0 and "<title" not in html


def test_markdown_loads_no_pictures_runs_no_tags_and_drops_its_front_matter():
    html = render.markdown(
        "---\ntags: x\n---\n\n# Card\n\n![p](https://example.com/p.png) <script>1</script> [l](javascript:1)"
        "\n\n| a |\n| --- |\n| 1 |\n"
    )
    assert "<h1>Card</h1>" in html and "<td>1</td>" in html and "tags" not in html
    assert "<img" not in html and "<script" not in html and 'href="javascript' not in html


def test_long_cells_are_cut_and_escaped():
    html = render.table([{"a_b": "<" * 200, "n": 0.12345}], ["a_b", "n"])
    assert "<th>a b</th>" in html and "0.123" in html and "&lt; …" in html and "<<" not in html


PASSAGE = Passage("Sales were <b>5</b> million.", "Item 7. <i>", "41", "a.html")
ASKED = Question((Document("a.html", (PASSAGE,)),), "What were sales?", (0,))


def test_an_answer_from_a_document_has_its_place_its_marked_passage_and_how_much_was_read():
    prediction = Prediction("5 and 9")
    given = DocumentAnswer(ASKED, prediction, (Source(PASSAGE, ((14, 15),)),), PASSAGE.text, 1)
    html = render.document_answer(QATask("qa", "…"), given)
    assert "a.html, Item 7. &lt;i&gt;, page 41" in html and "&lt;b&gt;<mark>5</mark>&lt;/b&gt;" in html
    assert "not in the text: 9" in html and "Read: all of a.html (4 words)." in html


def test_each_bullet_of_a_documents_summary_stands_above_its_own_source():
    given = DocumentAnswer(
        ASKED, Prediction("- sales 5\n- nothing"), (Source(PASSAGE, ((0, 5),), 1),), PASSAGE.text, 1
    )
    html = render.document_answer(SummarizationTask("summarization", "…"), given)
    assert html.index("sales 5") < html.index("<mark>Sales</mark>") < html.index("nothing")


def test_what_is_not_in_a_document_is_said_with_what_was_searched():
    html = render.document_answer(QATask("qa", "…"), DocumentAnswer(ASKED, None))
    assert "Not in this document." in html and "Searched: all 1 passages of a.html" in html
