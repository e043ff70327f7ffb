"""An evaluation of the sample by rules, and a browser that opens its pages without a network."""

import pytest
from chromium import chromium
from rules import RuleEngine

from fintune.config import EvaluationConfig, Recipe
from fintune.data.prepare.dataset import prepare
from fintune.pipeline import evaluate
from fintune.tasks import known_tasks


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    sample = {name: {"dataset": "sample", "max_train": 120, "max_test": 30} for name in known_tasks()}
    data = {"prepared_dir": str(folder / "prepared"), "tasks": sample}
    return prepare(Recipe.model_validate({"data": data}), say=lambda line: None)


@pytest.fixture(scope="session")
def results_file(prepared):
    output = prepared.folder.parent / "results.json"
    config = EvaluationConfig(base_model_max_test=8, baselines=[])
    quiet = {"say": lambda line: None, "progress": False}
    with pytest.MonkeyPatch.context() as patch:  # BERTScore takes seconds
        patch.setattr("fintune.metrics.bertscore.ENCODER_PACKAGE", "no_such_package")
        evaluate(RuleEngine(prepared.task_set()), prepared, config, output, **quiet)
    return output


@pytest.fixture(scope="module")  # two of Playwright's loops at a time in one thread are refused
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser):
    """Opens a file offline; at the end nothing else was asked for, and the console shows no error."""
    pages, asked, errors = [], [], []

    def open_page(path, width=1200, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        pages.append((context, path.as_uri()))
        return page

    yield open_page
    for context, _ in pages:
        context.close()
    assert {url for url in asked if not url.startswith("data:")} == {url for _, url in pages}
    assert errors == []
