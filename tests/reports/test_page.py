"""What the pages of an evaluation, data quality and drift share: phones, the dark, and hostile texts."""

import copy
import itertools
import random
import re

import pytest
from hostile import HOSTILE

from fintune.config import Recipe
from fintune.data.quality.measured import build
from fintune.evaluation.results import Bin, output_files
from fintune.monitoring.drift import compare
from fintune.monitoring.profile import Observation, Profile, TaskProfile
from fintune.reports import data_quality, drift, plots


@pytest.fixture(scope="module")
def quality(prepared):
    return build(prepared, None, Recipe.model_validate({}))


@pytest.fixture(scope="module")
def drifted():
    draw = random.Random(0)

    def answers(share):
        for _ in range(200):
            label = "up" if draw.random() < share else "down"
            yield Observation.of("profit rose " * draw.randint(2, 9), None, label, {label: draw.random()})

    reference = Profile({"sentiment": TaskProfile.of(answers(0.8), ["up", "down"])}, "the test data")
    return compare(reference, {"sentiment": answers(0.3)})


@pytest.fixture(scope="module")
def pages(results_file, quality, drifted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        "evaluation": output_files(results_file)["page"],
        "quality": data_quality.write(folder, quality)[2],
        "drift": drift.write_report(drifted, folder / "drift.html"),
    }


def _silent(page):
    """The boxes of tables that scroll and do not say so, or say so and do not scroll."""
    boxes = page.evaluate("""[...document.querySelectorAll('.scroll')].map(box => {
        const said = box.querySelector('.hint').checkVisibility();
        return {label: box.ariaLabel, scrolls: box.scrollWidth > box.clientWidth, said};
    })""")
    assert boxes
    return [box for box in boxes if box["scrolls"] != box["said"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["evaluation", "quality", "drift"])
def test_on_narrow_screens_wide_tables_scroll_in_their_box_and_say_so(pages, open_page, name, scheme):
    page = open_page(pages[name], 390, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for width in (390, 760):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert _silent(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in background[4:-1].split(",")]
    assert (max(channels) < 60) if scheme == "dark" else (min(channels) > 200)


@pytest.mark.parametrize("name", ["quality", "drift"])
def test_a_page_without_a_script_allows_none(pages, open_page, name):
    page = open_page(pages[name])
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert page.locator("script").count() == 0
    assert page.locator("nav a").count() and "Made by fintune" in page.inner_text("footer")


def test_on_a_wide_screen_only_a_table_that_is_wider_speaks_of_scrolling(pages, open_page):
    page = open_page(pages["quality"])
    assert _silent(page) == [] and not page.locator(".hint").first.is_visible()
    page.evaluate("document.querySelector('.scroll table').style.width = '1500px'")
    page.locator(".hint").first.wait_for()
    page.emulate_media(media="print")
    assert not page.locator(".hint:visible").count()


def test_texts_of_data_never_become_markup(quality, drifted, open_page, tmp_path):
    task = copy.deepcopy(quality["tasks"]["sentiment"])
    task |= dict.fromkeys(("dataset", "licence", "source"), HOSTILE)
    task |= {"dropped": {HOSTILE: 2}, "dropped_examples": [HOSTILE]}
    task["splits"]["train"]["labels"] = {HOSTILE: 3, "b": 4}
    across = {"test_sets": {HOSTILE: 3}, "train": [{"task": HOSTILE, "dataset": HOSTILE, "found": {}}]}
    report = {**quality, "data": HOSTILE, "tasks": {HOSTILE: task}, "across": across}
    page = open_page(data_quality.write(tmp_path, report)[2])
    assert page.title() == f"Data quality: {HOSTILE}" and page.inner_text("#task-1 h2") == HOSTILE
    assert page.locator("img, script").count() == 0

    entry = copy.deepcopy(drifted["tasks"]["sentiment"])
    entry["signals"]["labels"]["shares"] = {HOSTILE: [0.5, 0.2]}
    page = open_page(drift.write_report({**drifted, "tasks": {HOSTILE: entry}}, tmp_path / "drift.html"))
    assert HOSTILE in page.inner_text("#task-1 h2") and HOSTILE in page.inner_text("main table >> nth=2")
    assert page.locator("img, script").count() == 0


def test_the_page_of_drift_shows_each_signal_beside_its_thresholds(pages, open_page):
    page = open_page(pages["drift"])
    row = page.locator("#task-1 tbody tr", has_text="labels").first
    assert row.locator(".status.bad").inner_text() == "drift"
    dot, limit = (row.locator(f"svg {mark}").bounding_box()["x"] for mark in (".dot", ".drift"))
    assert dot > limit
    assert page.locator("tbody tr", has_text="median length").count() == 1
    summary = page.inner_text("#summary")
    assert "sentiment have changed: check some answers" in summary and "labels" in summary


def test_a_reliability_plot_has_a_second_view_where_its_dots_crowd():
    sure = [Bin(n=7, confidence=c, accuracy=0.9) for c in (0.6, 0.8, 0.955, 0.97, 0.99)]
    assert plots.crowded_from(sure[:4]) is None and plots.crowded_from(sure) == 0.95
    assert plots.crowded_from([Bin(n=7, confidence=c, accuracy=1) for c in (0.5, 0.992, 0.995, 1)]) == 0.99
    places = re.findall(r'cx="([0-9.]+)" cy="([0-9.]+)"', plots.reliability(sure, 0.95))
    x = [float(place) for place, _ in places]
    assert len(x) == 3 and min(b - a for a, b in itertools.pairwise(x)) > 60  # of 340 pixels
