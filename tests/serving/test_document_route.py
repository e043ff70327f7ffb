"""A document by the API: an answer with its sources, and what is refused."""

from base64 import b64encode

import httpx
import pytest

FILLER = "<p>The weather of the plain, the harvest and the roads between its towns.</p>"
FACT = "<h1>Item 7. Results</h1><p>Revenue of the northern segment was $412 million.</p>"
REPORT = f"<html>{FILLER * 80}{FACT}"


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def ask(client, task="qa", content=REPORT, **more):
    body = {"name": "report.html", "content": b64encode(content.encode()).decode(), **more}
    return client.post(f"/v1/tasks/{task}/document", json=body)


def test_a_question_is_answered_from_a_document_larger_than_other_requests_may_be(client):
    large = REPORT + "<p>" + "The end of it. " * 10_000
    answer = ask(client, content=large, question="What was the revenue of the northern segment?")
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["object"] == "document_answer" and isinstance(body["prediction"], str)
    assert body["sources"][0]["document"] == "report.html"
    assert 0 < body["read"]["words"] < body["read"]["of_words"]
    assert client.post("/v1/tasks/qa", json={"text": large, "question": "?"}).status_code == 413


def test_a_summary_and_what_is_not_in_the_document(client):
    assert ask(client, "summarization").json()["read"]["passages"] > 1
    body = ask(client, question="Which vaccines were approved?").json()
    assert body["error"] == "not in this document" and body["sources"] == [] and "prediction" not in body


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"content": "%PDF-1.4 nothing"}, "report.html cannot be read as a PDF"),
        ({"content": " "}, "report.html holds no text"),
        ({}, "the question is empty"),
    ],
)
def test_a_document_that_cannot_be_answered_from_is_a_sentence(client, more, message):
    answer = ask(client, **more)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_is_no_base64_or_no_task_is_refused(client):
    body = {"name": "a", "content": "§§§", "question": "x"}
    assert client.post("/v1/tasks/qa/document", json=body).status_code == 400
    assert ask(client, "none", question="x").status_code == 404
