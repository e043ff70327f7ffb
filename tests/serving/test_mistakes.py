"""Whose mistake it is: a caller hears of its own, others' answers stand, and folders stay in the log."""

import asyncio
from types import SimpleNamespace

from fintune.errors import ConfigError, DataError, ModelError
from fintune.serving.errors import for_caller
from fintune.serving.queue import ModelThread
from fintune.serving.settings import Settings
from fintune.tasks import Record
from fintune.tasks.types import QATask


def test_what_names_a_folder_stays_in_the_log(caplog):
    for kind in (ConfigError, ModelError):
        told = for_caller(kind("/srv/secret/fintune.json is damaged"))
        assert (told.status, "secret" in str(told), "secret" in caplog.text) == (500, False, True)
        caplog.clear()
    told = for_caller(DataError("the text is empty"))
    assert (told.status, str(told), caplog.text) == (400, "the text is empty", "")


class Choosy(QATask):
    """A plug-in's task that refuses some answers, once they are written."""

    refused = None

    def parse(self, text):
        if text.strip() == self.refused:
            raise DataError("this answer is no answer")
        return super().parse(text)


def test_a_plugin_that_refuses_an_answer_costs_no_other_text_of_the_batch_its_own(untuned):
    engine = untuned()
    task = engine.tasks.tasks["choosy"] = Choosy("choosy", "Answer.")
    task.max_new_tokens = 8
    records = [
        Record(text=text, target=None, question="What?")
        for text in ("Sales rose.", "Up 4 %.", "Cash fell to 12.")
    ]
    written = [answer.value for answer in engine.predict("choosy", records)]
    assert len(set(written)) == 3
    task.refused = written[1]
    thread = ModelThread(
        SimpleNamespace(get=lambda name: (engine, False), ready=lambda name: engine, texts=None), Settings()
    )
    try:
        answered = asyncio.run(thread.predict("any", "choosy", records))
    finally:
        thread.stop()
    first, second, third = (one.answer for one in answered)
    assert second == "this answer is no answer"
    assert [first.value, third.value] == [written[0], written[2]]
