"""The engine: labels by exact likelihood, whatever the batch; texts by greedy decoding; clear refusals."""

import copy
import math
import re

import adapter_folders
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fintune.config import EvaluationConfig
from fintune.data.raw.sample import sample_records
from fintune.errors import ConfigError, DataError, ModelError
from fintune.inference.engine import Engine, configure
from fintune.models.source import newest_adapter
from fintune.tasks import Record
from fintune.text.numbers import unsupported_figures


@pytest.fixture(scope="module")
def engine(untuned):
    return untuned(max_length=256)


def some(task, count):
    return [r for r in sample_records(task) if r.split == "test"][:count]


def shares(engine, task, ids):
    """Each label's share of the likelihood of all labels after a prompt, by a pass for each."""
    scores = []
    for label in task.labels:
        answer = engine.template.completion_ids(label)
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        scores.append(torch.log_softmax(logits, -1)[range(len(answer)), answer].sum())
    return torch.softmax(torch.stack(scores), 0)


def test_a_labels_probability_is_its_share_of_the_likelihood_of_all_labels(engine):
    record, task = some("headline", 1)[0], engine.tasks["headline"]
    expected = shares(engine, task, engine.template.prompt_ids(task, record, 200)[0]).tolist()
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
    monkeypatch.setattr(engine.builtin, "by_blocks", False)
    plain = engine.predict("headline", records)
    for a, b in zip(fast, plain, strict=True):
        assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), rel=1e-3)


def test_generated_text_does_not_depend_on_the_padding_of_its_batch(engine):
    records = some("qa", 3)
    together = engine.predict("qa", records)
    alone = [engine.predict("qa", [record])[0] for record in records]
    assert [p.value for p in together] == [p.value for p in alone]


def test_a_text_longer_than_the_context_is_refused_or_cut(engine):
    text = "revenue rose " * 250
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


def test_a_merged_adapter_answers_as_peft_does_also_after_the_untuned_base_was_asked(
    random_adapter, tiny_base
):
    import peft
    from transformers import AutoModelForCausalLM

    from fintune.models import manifest

    recipe, tasks = manifest.read(random_adapter)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), random_adapter)
    merged = Engine.load(random_adapter)
    peft_engine = Engine.of(plain.eval(), merged.tokenizer, tasks, recipe, random_adapter)
    records = some("headline", 4)

    def both(use_adapter):
        asked = [e.predict("headline", records, use_adapter=use_adapter) for e in (merged, peft_engine)]
        return [[list(p.probabilities.values()) for p in found] for found in asked]

    seen = []
    for use_adapter in (True, False, True, False):
        ours, theirs = both(use_adapter)
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
        seen.append(ours)
    assert seen[0][0] != pytest.approx(seen[1][0], rel=0.05)
    layers = [module for module in merged.model.modules() if hasattr(module, "merged_adapters")]
    assert layers and all(layer.merged for layer in layers)


def test_an_adapter_that_is_no_number_leaves_the_untuned_base_as_it_is(random_adapter, tiny_base, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(random_adapter, tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    weights[min(weights)][0, 0] = math.nan
    save_file(weights, broken / "adapter_model.safetensors", {"format": "pt"})
    adapter_folders.reseal(broken)
    records = some("headline", 2)
    whole, ours = (
        [
            list(p.probabilities.values())
            for p in Engine.load(f).predict("headline", records, use_adapter=False)
        ]
        for f in (random_adapter, broken)
    )
    assert ours[0] == pytest.approx(whole[0], rel=1e-3) and ours[1] == pytest.approx(whole[1], rel=1e-3)


def test_labels_can_be_compared_by_the_mean_of_their_tokens(engine, monkeypatch):
    task, records = engine.tasks["headline"], some("headline", 3)
    lengths = [len(engine.template.completion_ids(label)) for label in task.labels]
    plain = engine.predict("headline", records)
    monkeypatch.setattr(task, "normalization", "tokens")
    for before, after in zip(plain, engine.predict("headline", records), strict=True):
        a, b = (torch.tensor(list(p.probabilities.values())).log() for p in (before, after))
        n = torch.tensor(lengths, dtype=torch.float)
        # log p is known up to a constant c in both, so n · (b + c') = a + c holds for one pair of constants.
        unknown = torch.stack([n, -torch.ones(3)], 1)
        solution = torch.linalg.lstsq(unknown, (a - n * b)[:, None])
        assert torch.allclose(unknown @ solution.solution, (a - n * b)[:, None], atol=1e-3)


def test_contextual_calibration_divides_by_the_answer_to_inputs_without_content(engine, monkeypatch):
    from fintune.inference.engine import CONTENT_FREE

    task, records = engine.tasks["sentiment"], some("sentiment", 3)
    plain = engine.predict("sentiment", records)
    prompts = [engine.template.prompt_ids(task, Record(text=text), 200)[0] for text in CONTENT_FREE]
    free = torch.stack([shares(engine, task, ids) for ids in prompts]).mean(0)
    monkeypatch.setattr(task, "calibration", "contextual")
    for before, after in zip(plain, engine.predict("sentiment", records), strict=True):
        expected = torch.tensor(list(before.probabilities.values())) / free
        expected = (expected / expected.sum()).tolist()
        assert list(after.probabilities.values()) == pytest.approx(expected, rel=1e-3)


def test_calibration_keeps_every_answer_and_lowers_the_nll_and_leaves_the_untuned_base_alone(
    engine, monkeypatch
):
    from fintune.config import EvaluationConfig
    from fintune.inference.calibration import calibrate

    records = some("headline", 60)
    task = engine.tasks["headline"]
    monkeypatch.setattr(task, "temperature", 1.0)  # and back afterwards
    untuned = engine.predict("headline", records, use_adapter=False)
    before = engine.predict("headline", records)
    chosen = calibrate(engine, {"headline": records}, EvaluationConfig(label_normalization="none"))
    assert chosen == {"headline": {"normalization": "none", "temperature": round(task.temperature, 4)}}
    after = engine.predict("headline", records)
    assert [a.value for a in after] == [b.value for b in before]

    def nll(answers):
        return -sum(math.log(a.probabilities[r.target]) for a, r in zip(answers, records, strict=True))

    assert nll(after) < nll(before) - 0.1
    again = engine.predict("headline", records, use_adapter=False)
    assert [a.probabilities for a in again] == [a.probabilities for a in untuned]


def test_every_answer_carries_a_probability_or_an_interval(engine):
    label = engine.predict("sentiment", some("sentiment", 1))[0]
    assert label.confidence == label.probabilities[label.value]
    record = some("qa", 1)[0]
    answer = engine.predict("qa", [record])[0]
    ids = engine.template.prompt_ids(engine.tasks["qa"], record, 200)[0]
    budget = engine.completion_budget(engine.tasks["qa"])
    tokens = engine.model.generate(torch.tensor([ids]), max_new_tokens=budget, do_sample=False)[0].tolist()
    with torch.no_grad():
        logits = engine.model(torch.tensor([tokens])).logits[0, len(ids) - 1 : -1]
    own = torch.log_softmax(logits, -1)[range(len(tokens) - len(ids)), tokens[len(ids) :]]
    assert answer.value == engine.tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True).strip()
    assert answer.token_probability == answer.confidence == pytest.approx(float(own.mean().exp()), rel=1e-3)


def test_a_kept_prefix_serves_later_calls_and_one_that_is_not_kept_follows_the_weights(engine):
    record = some("sentiment", 1)
    first = engine.predict("sentiment", record)[0]
    assert engine.builtin.prefixes._known and engine.predict("sentiment", record)[0] == first
    keeper, weight = engine.builtin.prefixes, engine.model.model.layers[0].self_attn.k_proj.weight
    engine.builtin.prefixes = type(keeper)(keep=False)
    engine.predict("sentiment", record)
    with torch.no_grad():
        weight *= 2
    try:
        after = engine.predict("sentiment", record)[0]
        engine.builtin.by_blocks = False
        plain = engine.predict("sentiment", record)[0]
    finally:
        engine.builtin.by_blocks, engine.builtin.prefixes = True, keeper
        with torch.no_grad():
            weight /= 2
    assert after != first
    assert list(after.probabilities.values()) == pytest.approx(list(plain.probabilities.values()), rel=1e-3)


@pytest.mark.parametrize("by_blocks", [True, False])
def test_bullets_and_copied_passages_are_what_is_written(engine, monkeypatch, by_blocks):
    from fintune.inference.formats import allowed_tokens
    from fintune.tasks.base import TextFormat

    monkeypatch.setattr(engine.builtin, "by_blocks", by_blocks)
    summary, qa = engine.tasks["summarization"], engine.tasks["qa"]
    monkeypatch.setattr(summary, "text_format", TextFormat(bullets=3, bullet_tokens=6))
    for answer in engine.predict("summarization", some("summarization", 2)):
        lines = answer.value.split("\n")
        assert 1 <= len(lines) <= 3 and all(line.startswith("-") and len(line) > 1 for line in lines)
    (dash,), (line,) = (engine.tokenizer(text)["input_ids"] for text in ("-", "\n"))
    end = engine.tokenizer.eos_token_id
    allowed = allowed_tokens(summary.text_format, engine.tokenizer, [Record(text="")])
    bullet = [dash, 11, 12, 13, 14, 15]
    assert list(allowed(0, bullet)) == [line, end] and list(allowed(0, [*bullet, line])) == [dash]
    assert list(allowed(0, [*bullet, line, *bullet, line, *bullet])) == [end]
    monkeypatch.setattr(qa, "text_format", TextFormat(copy_spans=True))
    records = some("qa", 3)
    for record, answer in zip(records, engine.predict("qa", records), strict=True):
        assert answer.value and answer.value in record.text


@given(
    st.lists(st.from_regex(r"[0-9]{1,3}(,[0-9]{3})?(\.[0-9]{1,2})?", fullmatch=True), max_size=4),
    st.randoms(),
)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_is_drawn_has_the_sources_numbers_alone(engine, numbers, random):
    """Any walk through the tokens that may come next, digits and points taken where they may, writes numbers
    of the source; and the source's own sentence may be written."""
    from fintune.inference.formats import allowed_tokens
    from fintune.tasks.base import TextFormat

    source = "Sales of " + " and ".join(f"{number}, or more." for number in numbers)
    tokenizer = engine.tokenizer
    allowed = allowed_tokens(TextFormat(source_numbers=True), tokenizer, [Record(text=source)])
    ids = tokenizer(source)["input_ids"]
    assert all(token in allowed(0, ids[:i]) for i, token in enumerate(ids))
    (word,) = tokenizer("and")["input_ids"]  # glued to the number before it, too
    parts = [i for sign in "0123456789.," for i in tokenizer(sign)["input_ids"]]
    drawn = []
    for _ in range(25):
        may = set(allowed(0, drawn).tolist())
        likely = [i for i in parts if i in may]
        take = likely and (word not in may or random.random() < 0.8)
        drawn.append(random.choice(likely) if take else word)
    while word not in allowed(0, drawn):
        drawn.append(next(i for i in parts if i in allowed(0, drawn)))
    assert not unsupported_figures(tokenizer.decode(drawn), source)
    written = re.findall(r"[0-9]+(?:[.,][0-9]+)*", tokenizer.decode(drawn))
    assert set(written) <= {form for number in numbers for form in (number, number.replace(",", ""))}


@pytest.mark.parametrize(
    "text, may, may_not",
    [
        ("rose to $777", ["."], [" and", ",", " billion"]),
        ("rose to $777.1", [" billion"], [" million", " and", "2"]),
        ("in Q3", [" and", "."], ["4"]),
        ("for the 2", ["nd"], [" and", " billion"]),
        ("up 4", ["%", " and", "."], [" million", "5"]),
        ("1", [","], [" and"]),
        ("1,2", ["0"], [" and", "1"]),
    ],
)
def test_a_number_keeps_the_scale_of_its_source(engine, text, may, may_not):
    from fintune.inference.formats import allowed_tokens
    from fintune.tasks.base import TextFormat

    source = "In Q3, the 2nd of them, sales of 1,200 shops were $777.1 billion, up 4 percent."
    allowed = allowed_tokens(TextFormat(source_numbers=True), engine.tokenizer, [Record(text=source)])
    ids = engine.tokenizer
    found = set(allowed(0, ids(text)["input_ids"]).tolist())
    assert all(ids(piece)["input_ids"][0] in found for piece in may)
    assert not any(ids(piece)["input_ids"][0] in found for piece in may_not)


def test_a_format_bounds_the_length_and_is_refused_where_no_text_is_written(engine):
    tasks = copy.deepcopy(engine.tasks)
    configure(tasks, EvaluationConfig(formats={"qa": {"max_new_tokens": 5}}))
    assert tasks["qa"].max_new_tokens == 5 and tasks["qa"].text_format is None
    with pytest.raises(ConfigError, match="formats names sentiment, a classification task"):
        configure(tasks, EvaluationConfig(formats={"sentiment": {"bullets": 3}}))


def test_a_number_that_the_limit_of_tokens_cuts_is_left_out(engine, monkeypatch):
    from fintune.inference.formats import without_cut_number
    from fintune.tasks.base import TextFormat

    assert without_cut_number("- sales rose\n- to $77") == "- sales rose\n- to"
    assert without_cut_number("- up 4 percent") == "- up 4 percent"
    summary = engine.tasks["summarization"]
    monkeypatch.setattr(summary, "text_format", TextFormat(source_numbers=True))
    monkeypatch.setattr(summary, "max_new_tokens", 9)
    records = some("summarization", 4)
    for record, answer in zip(records, engine.predict("summarization", records), strict=True):
        assert not unsupported_figures(str(answer.value), record.text)
