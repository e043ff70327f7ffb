"""One client cannot stop the others: turns, shares, limits, memory, passes of long prompts, and failures."""

import asyncio
import contextlib
import threading

import pytest

from fintune.inference import formats
from fintune.serving import shares
from fintune.serving.errors import ApiError
from fintune.serving.shares import CALLER, Caller, Limiter
from fintune.serving.writing import Sampling
from fintune.tasks import Record
from fintune.tasks.base import TextFormat

POISON = "A text that the kernel cannot take."


@contextlib.contextmanager
def held(thread):
    """The model thread, busy with something until the block ends."""
    over, on = threading.Event(), threading.Event()

    def wait():
        on.set()
        over.wait(30)

    busy = asyncio.ensure_future(thread.control(wait))
    try:
        yield lambda: asyncio.to_thread(on.wait, 10)
    finally:
        over.set()
        busy.add_done_callback(lambda done: done.exception())


def records(count, text="Sales rose"):
    return [Record(text=f"{text} {i} %.") for i in range(count)]


def asked(thread, who, count, task="headline", **limits):
    """A caller's request, as a task of the event loop."""
    CALLER.set(Caller(who, **limits))
    return asyncio.ensure_future(thread.predict("base", task, records(count)))


async def settled(thread, count):
    """When so many records wait."""
    while thread.length != count:
        await asyncio.sleep(0.01)


def test_a_greedy_caller_neither_fills_the_queue_nor_goes_first(thread):
    one = thread(max_queue=512, max_batch=16)
    order = []

    async def all_of_it():
        with held(one) as begun:
            await begun()
            greedy = [asked(one, "greedy", 128) for _ in range(4)]
            await settled(one, 512)
            for each in greedy:
                each.add_done_callback(lambda done: order.append("greedy"))
            more = asked(one, "greedy", 128)  # alone it may fill the queue, and no more
            with pytest.raises(ApiError) as full:
                await more
            modest = [asked(one, f"modest{i}", 2, "sentiment") for i in range(8)]
            for each in modest:
                each.add_done_callback(lambda done: order.append("modest"))
            await settled(one, 384 + 16)  # the newest of the greedy one's requests gave way
            with pytest.raises(ApiError) as again:
                await asked(one, "greedy", 128)
        found = await asyncio.gather(*modest, *greedy, return_exceptions=True)
        return full.value, again.value, found

    full, again, found = asyncio.run(all_of_it())
    assert (full.status, full.code) == (503, "overloaded")
    assert (again.status, again.code) == (429, "share_exceeded")
    assert "56 of its 512 records" in str(again) and int(again.headers["Retry-After"]) >= 1
    assert [isinstance(each, ApiError) for each in found] == [False] * 11 + [True]
    assert found[-1].status == 429
    assert order.count("modest") == 8 and set(order[:9]) == {"modest", "greedy"}
    assert [len(each) for each in found[:-1]] == [2] * 8 + [128] * 3


def test_records_of_several_callers_share_a_batch_by_turns(engine, thread, monkeypatch):
    one = thread(max_batch=8)
    batches = []
    real = engine.replies

    def replies(task, given, **options):
        batches.append([record.text.split()[0] for record in given])
        return real(task, given, **options)

    monkeypatch.setattr(engine, "replies", replies)

    async def both():
        with held(one) as begun:
            await begun()
            CALLER.set(Caller("a"))
            many = asyncio.ensure_future(one.predict("base", "headline", records(20, "A")))
            CALLER.set(Caller("b"))
            few = asyncio.ensure_future(one.predict("base", "headline", records(4, "B")))
            await settled(one, 24)
        return await asyncio.gather(many, few)

    many, few = asyncio.run(both())
    assert [len(batch) for batch in batches] == [8, 8, 8] and batches[0].count("B") == 4
    alone = real("headline", records(20, "A"), use_adapter=False)
    assert [a.answer.value for a in many] == [b.answer.value for b in alone] and len(few) == 4


def chat(thread, ids, seen=None, max_tokens=4, label="text"):
    async def write():
        pieces = []
        async for piece in thread.write("base", lambda _: ids, Sampling(max_tokens=max_tokens), label):
            pieces.append(piece)
            if seen is not None:
                seen.append(piece)
        return pieces

    return asyncio.ensure_future(write())


def long_ids(engine, count):
    return (engine.template.text_ids("Sales of the unit rose by a tenth to five million euros. ") * count)[
        :count
    ]


def test_labels_are_answered_between_the_passes_of_a_long_prompt_which_ends_with_its_client(
    engine, thread, monkeypatch
):
    one, passes = thread(), []
    real = engine.model.forward

    def forward(*given, **options):
        passes.append(options["input_ids"].shape[1])
        return real(*given, **options)

    monkeypatch.setattr(engine.model, "forward", forward)
    ids = long_ids(engine, 1900)

    async def both():
        text = chat(one, ids)
        while 256 not in passes:
            await asyncio.sleep(0.001)
        await one.predict("base", "headline", records(1))
        done = text.done()
        whole = await text
        passes.clear()
        gone = chat(one, ids)
        while 256 not in passes:
            await asyncio.sleep(0.001)
        gone.cancel()
        await one.predict("base", "headline", records(1))
        await one.control(lambda: None)
        return done, whole, passes.count(256)

    done, whole, before_it_ended = asyncio.run(both())
    assert not done and whole[-1].prompt_tokens == 1900
    assert max(passes) == 256 and before_it_ended < 7
    assert not one._groups


def test_a_text_written_after_passes_is_the_one_written_after_one(engine):
    import torch

    from fintune.inference.backends import builtin
    from fintune.inference.decoding import greedy

    prompts = [long_ids(engine, 700), long_ids(engine, 12), long_ids(engine, 300)[5:]]
    with engine.backend.session(False), torch.no_grad():
        passes = greedy(engine.backend.begin(prompts, 12), range(3), 12, ends=())
        whole = engine.backend.generate(prompts, 12, (), None)
    assert builtin.STEP_TOKENS["cpu"] < 700
    for one, other in zip(passes, whole, strict=True):
        assert one.ids == other.ids
        assert one.log_probabilities == pytest.approx(other.log_probabilities, rel=1e-3, abs=1e-4)


def test_texts_that_do_not_fit_the_memory_together_wait_for_each_other(engine, thread):
    one = thread(max_text_tokens=1000)
    most = []

    async def all_of_them():
        texts = [chat(one, long_ids(engine, 400), max_tokens=8) for _ in range(5)]
        while not all(text.done() for text in texts):
            most.append(sum(len(group.writings) for _, group, _ in list(one._groups)))
            await asyncio.sleep(0.001)
        alone = await chat(one, long_ids(engine, 1500), max_tokens=8)  # one alone may have more
        return [await text for text in texts], alone

    texts, alone = asyncio.run(all_of_them())
    assert max(most) == 2
    assert [text[-1].completion_tokens for text in texts] == [8] * 5 and alone[-1].prompt_tokens == 1500


def test_what_fails_in_a_batch_fails_alone_and_its_text_stays_out_of_the_log(
    engine, thread, monkeypatch, caplog
):
    one = thread()
    real = engine.backend.log_likelihoods
    culprit = engine.prompts("headline", [Record(text=POISON)])[0]

    def fails(prompts, answers, shared=0):
        if culprit in prompts:
            raise RuntimeError(f"cannot compute {POISON!r}")
        return real(prompts, answers, shared)

    monkeypatch.setattr(engine.backend, "log_likelihoods", fails)
    innocent = [record.text for record in records(6)]

    async def several():
        with held(one) as begun:
            await begun()
            work = [[Record(text=text)] for text in (*innocent, POISON)]
            mixed = [Record(text=text) for text in ("Up 1 %.", POISON, "Down 2 %.")]
            asked = [asyncio.ensure_future(one.predict("base", "headline", each)) for each in [*work, mixed]]
            await settled(one, 10)
        return await asyncio.gather(*asked, return_exceptions=True)

    *answered, refused, mixed = asyncio.run(several())
    wanted = real  # the answers of the innocent are those they get alone
    monkeypatch.setattr(engine.backend, "log_likelihoods", wanted)
    alone = engine.predict("headline", [Record(text=text) for text in innocent], use_adapter=False)
    assert [each[0].answer.value for each in answered] == [each.value for each in alone]
    assert (refused.status, refused.code) == (500, "internal_error")
    assert "The model failed" in mixed[1].answer and not isinstance(mixed[0].answer, str)
    assert "RuntimeError" in caplog.text and POISON not in caplog.text


def test_a_text_whose_token_cannot_be_chosen_fails_alone(engine, thread, monkeypatch, caplog):
    from fintune.serving.writing import Writing

    one, real = thread(), Writing._choose

    def choose(writing, logits):
        if len(writing.prompt) == 7 and writing.ids:
            raise ValueError("no token for it")
        return real(writing, logits)

    monkeypatch.setattr(Writing, "_choose", choose)

    async def both():
        with held(one) as begun:
            await begun()
            texts = [chat(one, long_ids(engine, count)) for count in (5, 7, 9)]
            await settled(one, 3)
        return await asyncio.gather(*texts, return_exceptions=True)

    first, bad, last = asyncio.run(both())
    assert bad.status == 500 and first[-1].completion_tokens == last[-1].completion_tokens == 4


def test_a_prompt_that_fails_is_found_among_those_computed_with_it(engine, thread, monkeypatch):
    one, real = thread(), engine.backend.begin

    def begin(prompts, most):
        texts = real(prompts, most)
        if any(len(prompt) == 7 for prompt in prompts):

            def advance(_):
                raise RuntimeError("out of memory")

            texts.advance = advance
        return texts

    monkeypatch.setattr(engine.backend, "begin", begin)

    async def several():
        with held(one) as begun:
            await begun()
            texts = [chat(one, long_ids(engine, count)) for count in (5, 7, 9, 11)]
            await settled(one, 4)
        return await asyncio.gather(*texts, return_exceptions=True)

    found = asyncio.run(several())
    assert [isinstance(each, ApiError) for each in found] == [False, True, False, False]


def test_records_and_tokens_are_limited_like_requests(thread):
    one = thread()

    async def refused(who, count, **limits):
        with pytest.raises(ApiError) as error:
            await asked(one, who, count, **limits)
        return error.value

    async def all_of_it():
        assert len(await asked(one, "a", 5, records=8)) == 5
        by_records = await refused("a", 5, records=8)
        await asked(one, "b", 3, tokens=100)  # more than a full bucket: paid back before the next
        by_tokens = await refused("b", 1, tokens=100)
        assert len(await asked(one, "c", 1, tokens=100)) == 1
        return by_records, by_tokens

    for error, limit in zip(asyncio.run(all_of_it()), ("8 records", "100 tokens"), strict=True):
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert f"limit is {limit} per minute" in str(error) and int(error.headers["Retry-After"]) >= 1


def test_megabytes_are_refused_before_they_are_made_tokens(engine, thread, monkeypatch):
    one = thread()
    text = "Sales rose by 4.5 %. " * 50_000
    monkeypatch.setattr(engine.template, "_prompt_ids", lambda *_: pytest.fail("tokenized"))
    found = asyncio.run(one.predict("base", "headline", [Record(text=text)]))
    assert "1,050,000 characters" in found[0].answer and "send truncate: true" in found[0].answer


def test_a_text_cut_before_it_is_made_tokens_is_the_one_cut_after(engine, monkeypatch):
    text = "Sales rose by 4.5 % to EUR 13.1 mn in the quarter. " * 4_000
    cut = engine.prompts("headline", [Record(text=text)])
    monkeypatch.setattr(engine.template, "most_characters", lambda tokens: 10**9)
    assert cut == engine.prompts("headline", [Record(text=text)])


def test_tokens_are_made_beside_the_model_thread(engine, thread, monkeypatch):
    one, where = thread(), set()
    real = engine.template._prompt_ids

    def prompt_ids(task, record):
        where.add(threading.current_thread().name.rpartition("_")[0])
        return real(task, record)

    def allowed_tokens(*given):
        assert threading.current_thread().name.startswith("fintune-tokens")
        chosen.append(given)
        return constrained(*given)

    chosen, constrained = [], formats.allowed_tokens
    monkeypatch.setattr(formats, "allowed_tokens", allowed_tokens)
    summary = engine.tasks["summarization"]
    monkeypatch.setattr(summary, "text_format", TextFormat(bullets=2, bullet_tokens=4, source_numbers=True))
    monkeypatch.setattr(summary, "max_new_tokens", 12)
    asked = [Record(text=f"Sales rose {i} %. Cash fell.") for i in (3, 45, 678)]
    found = asyncio.run(one.predict("base", "summarization", asked))
    assert len(chosen) == 3
    monkeypatch.undo()
    monkeypatch.setattr(summary, "text_format", TextFormat(bullets=2, bullet_tokens=4, source_numbers=True))
    monkeypatch.setattr(summary, "max_new_tokens", 12)
    alone = engine.predict("summarization", asked, use_adapter=False)
    assert [each.answer.value for each in found] == [each.value for each in alone]
    monkeypatch.setattr(engine.template, "_prompt_ids", prompt_ids)
    engine._frames.clear()
    asyncio.run(one.predict("base", "sentiment", [Record(text="Sales of the unit rose.")]))
    assert where >= {"fintune-tokens"}


def test_addresses_of_one_network_are_one_caller():
    assert shares.address("10.0.0.7") == "10.0.0.7"
    assert shares.address("2001:db8:1:2::7") == shares.address("2001:db8:1:2:9::1") == "2001:db8:1:2::/64"


def test_the_limiter_forgets_whoever_has_used_nothing_lately(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(shares.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shares, "MAX_KEPT", 10)
    limiter = Limiter()
    for i in range(100):
        now[0] += 61
        assert limiter.take(str(i), 1) == 0
    assert len(limiter._buckets) < 15
