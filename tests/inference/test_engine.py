"""The engine: labels by exact likelihood, whatever the batch; texts by greedy decoding; clear refusals."""

import pytest
import torch

from fintune.data.sample import sample_records
from fintune.errors import DataError, ModelError
from fintune.inference.engine import Engine, newest_adapter
from fintune.tasks import Record


@pytest.fixture(scope="module")
def engine(tiny_base):
    from fintune.config import Recipe

    recipe = {"base_model": {"name": str(tiny_base)}, "training": {"bf16": False, "max_length": 256}}
    return Engine.load(None, Recipe.model_validate(recipe))


def some(task, count):
    return [r for r in sample_records(task) if r.split == "test"][:count]


def test_a_labels_probability_is_its_share_of_the_likelihood_of_all_labels(engine):
    record, task = some("headline", 1)[0], engine.tasks["headline"]
    ids, _ = engine.template.prompt_ids(task, record, 200)
    scores = []
    for label in task.labels:
        answer = engine.template.completion_ids(label)
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        scores.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].sum())
    expected = torch.softmax(torch.stack(scores), 0).tolist()
    prediction = engine.predict("headline", [record])[0]
    assert list(prediction.probabilities.values()) == pytest.approx(expected, rel=1e-3)
    assert prediction.value == max(prediction.probabilities, key=prediction.probabilities.get)


def test_predictions_do_not_depend_on_the_batch_nor_on_the_order(engine):
    records = some("sentiment", 7)
    together = engine.predict("sentiment", records, batch_size=7)
    alone = engine.predict("sentiment", records, batch_size=1)
    backwards = engine.predict("sentiment", records[::-1], batch_size=3)[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.value == b.value == c.value
        assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), rel=1e-3)


def test_without_block_attention_the_answers_are_the_same(engine, monkeypatch):
    records = some("headline", 4)
    fast = engine.predict("headline", records)
    monkeypatch.setattr(engine, "by_blocks", False)
    plain = engine.predict("headline", records)
    for a, b in zip(fast, plain, strict=True):
        assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), rel=1e-3)


def test_generated_text_does_not_depend_on_the_padding_of_its_batch(engine):
    records = some("qa", 3)
    together = engine.predict("qa", records)
    alone = [engine.predict("qa", [record])[0] for record in records]
    assert [p.value for p in together] == [p.value for p in alone]


def test_a_text_longer_than_the_context_is_refused_or_cut(engine):
    text = "revenue rose " * 400
    with pytest.raises(DataError, match=r"sentiment prompt has \d+ tokens, but there is room for \d+"):
        engine.predict("sentiment", [Record(text=text)], truncate=False)
    assert engine.answer("sentiment", text).value in engine.tasks["sentiment"].labels


def test_a_number_task_without_levels_and_an_unknown_task_are_refused(engine):
    with pytest.raises(DataError, match="no levels yet"):
        engine.answer("regression", "Shares rose.")
    with pytest.raises(DataError, match="no task 'mood': the tasks are sentiment"):
        engine.answer("mood", "Shares rose.")


def test_an_absent_model_or_adapter_is_named_with_its_fix(workdir, tiny_base):
    from fintune.config import Recipe

    with pytest.raises(ModelError, match=r"no adapter at output/absent.*train one"):
        Engine.load("output/absent")
    with pytest.raises(ModelError, match="is not an adapter: it has no adapter_config"):
        Engine.load(tiny_base)
    with pytest.raises(ModelError, match=r"base_model\.name is nobody/nothing, which cannot be loaded"):
        Engine.load(None, Recipe.model_validate({"base_model": {"name": "nobody/nothing"}}))
    with pytest.raises(ModelError, match="no trained adapter under output"):
        newest_adapter()


def test_a_trained_adapter_answers_every_task_and_the_untuned_base_still_answers(tiny_recipe, workdir):
    from fintune.training.run import train

    train(tiny_recipe(), workdir / "output" / "model", progress=False)
    assert newest_adapter() == workdir.joinpath("output/model").relative_to(workdir)
    engine = Engine.load("output/model")
    tuned = engine.answer("regression", "Acme raised its outlook.")
    assert isinstance(tuned.value, float) and sum(tuned.probabilities.values()) == pytest.approx(1)
    assert isinstance(engine.answer("summarization", "Revenue rose to $5 million.").value, str)
    record = some("sentiment", 1)
    untuned = engine.predict("sentiment", record, use_adapter=False)[0]
    base = Engine.load(None, tiny_recipe()).predict("sentiment", record)[0]
    assert list(untuned.probabilities.values()) == pytest.approx(list(base.probabilities.values()), rel=1e-4)
