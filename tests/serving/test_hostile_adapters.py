"""Folders that others hand in: none changes what the base and its neighbours answer, each is refused once."""

import asyncio
import json
import os
import re
import shutil
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from adapter_folders import CONFIG, MANIFEST, WEIGHTS, changed, reseal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fintune.errors import FintuneError, ModelError
from fintune.serving.adapters import Models
from fintune.tasks import Record

TEXTS = ("Sales rose 8 %.", "Profit fell.")


@pytest.fixture(scope="module")
def place(random_adapter, tmp_path_factory):
    """A folder of adapters with one good one, `good`."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(random_adapter, folder / "good")
    return folder


@pytest.fixture(scope="module")
def models(place):
    return Models(None, (place,))


def said(models, name):
    engine, use_adapter = models.get(name)
    found = engine.predict("sentiment", [Record(text) for text in TEXTS], use_adapter=use_adapter)
    return [answer.probabilities for answer in found]


def refused(models, name):
    """Why a folder is not loaded, however it is asked for."""
    if name not in models.folders():
        return next(why for path, why in models._told.items() if path.name == name)
    with pytest.raises(ModelError) as error:
        models.get(name)
    return str(error.value)


def wide(state):
    return {name: value.repeat(2, 1) if "lora_A" in name else value for name, value in state.items()}


def without_first(state):
    return dict(list(state.items())[1:])


def deep(state):
    name = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    return {**state, name: next(iter(state.values())).clone()}


def base_weight(state):
    import torch

    return {**state, "base_model.model.model.norm.weight": torch.zeros(64)}


def as_int(state):
    import torch

    return {name: value.to(torch.int8) for name, value in state.items()}


HOSTILE = {
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, None, "init_lora_weights to pissa_niter_4"),
    "olora": ({"init_lora_weights": "olora"}, None, "init_lora_weights"),
    "replicated": ({"layer_replication": [[0, 2], [0, 2]]}, None, r"layer_replication to \[\[0, 2\]"),
    "saved": ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
    "parameters": ({"target_parameters": ["mlp.gate_proj.weight"]}, None, "target_parameters"),
    "indices": ({"trainable_token_indices": [1]}, None, "trainable_token_indices"),
    "megatron": ({"megatron_config": {"a": 1}, "megatron_core": "os"}, None, "megatron_con|megatron_core"),
    "biased": ({"bias": "all"}, None, "its bias is all"),
    "other": ({"peft_type": "IA3"}, None, "peft_type to IA3"),
    "pattern": ({"rank_pattern": {"(a+)+$": 4}}, None, "rank_pattern"),
    "targets": ({"target_modules": ["(x+x+)+y"]}, None, "target_modules"),
    "layers": ({"target_modules": ["lora_A"]}, None, "no layer of"),
    "block": ({"target_modules": ["self_attn"]}, None, "which LoRA does not adapt"),
    "rank": ({"r": 10**9}, None, "r to 1000000000"),
    "nan": ({"lora_alpha": float("nan")}, None, "lora_alpha to NaN"),
    "text": ({"r": "4"}, None, "r to 4"),
    "unknown": ({"run_code": "yes"}, None, "run_code to yes"),
    "wide": ({}, wide, r"lora_A.weight is \[8, 64\], and must be \[4, 64\]"),
    "missing": ({}, without_first, "its weights have no base_model"),
    "deep": ({}, deep, "layers.7.self_attn"),
    "base": ({}, base_weight, "weights have base_model.model.model.norm.weight"),
    "int": ({}, as_int, "of type I8"),
}


def test_no_hostile_folder_changes_an_answer_and_each_is_refused_with_its_reason(models, place):
    before = said(models, "good"), said(models, models.base)
    parameters = len(list(models._plain.parameters()))
    try:
        for name, (config, weights, _) in HOSTILE.items():
            changed(place / "good", place / name, config, weights)
        for name, (_, _, why) in HOSTILE.items():
            assert re.search(why, refused(models, name)), (name, refused(models, name))
            assert (said(models, "good"), said(models, models.base)) == before, name
        assert len(list(models._plain.parameters())) == parameters
    finally:
        for name in HOSTILE:
            shutil.rmtree(place / name, ignore_errors=True)


FIELDS = st.sampled_from(
    "r lora_alpha target_modules init_lora_weights layer_replication bias modules_to_save rank_pattern "
    "alpha_pattern use_dora use_rslora lora_bias exclude_modules layers_to_transform "
    "loftq_config eva_config runtime_config peft_type task_type "
    "auto_mapping fan_in_fan_out base_model_name_or_path kasa_config".split()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70_000) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["q_proj", "lm_head", "all-linear", "pissa", "gaussian", "LORA", "all", "weight"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("q_proj"), inner),
    max_leaves=4,
)  # fmt: skip
CUTS = st.none() | st.tuples(
    st.sampled_from([CONFIG, WEIGHTS, MANIFEST]), st.integers(0, 400), st.binary(max_size=9)
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(FIELDS, VALUES, max_size=3), st.sampled_from([None, wide, without_first, deep]), CUTS)
def test_whatever_a_folder_holds_the_base_and_a_neighbour_answer_bit_for_bit_as_before(
    models, place, config, weights, cut
):
    before = said(models, "good"), said(models, models.base)
    folder = place / "any"
    try:
        changed(place / "good", folder, config, weights)
        if cut:
            name, at, put = cut
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:at] + put + content[at + 1 :])
        try:
            said(models, "any") if "any" in models.folders() else None
        except FintuneError:
            assert "any" not in models.loaded()
        assert (said(models, "good"), said(models, models.base)) == before
    finally:
        models.unload("any")
        shutil.rmtree(folder, ignore_errors=True)
    assert (said(models, "good"), said(models, models.base)) == before


def test_a_failed_first_load_leaves_the_base_bare_and_a_repeat_reads_and_keeps_nothing(
    place, tmp_path, monkeypatch
):
    changed(place / "good", tmp_path / "odd", {}, wide)
    models = Models(None, (tmp_path,))
    before = said(models, models.base)
    names = [name for name, _ in models._plain.named_modules()]
    why = refused(models, "odd")
    assert [name for name, _ in models._plain.named_modules()] == names
    memory, begun = psutil.Process().memory_info().rss, time.perf_counter()
    monkeypatch.setattr("fintune.models.adapter_files.read", lambda folder: pytest.fail("it is read again"))
    for _ in range(50):
        assert refused(models, "odd") == why
    assert psutil.Process().memory_info().rss - memory < 5_000_000 and time.perf_counter() - begun < 1
    monkeypatch.undo()
    assert said(models, models.base) == before
    shutil.copy(place / "good" / WEIGHTS, tmp_path / "odd" / WEIGHTS)  # mended: tried again
    reseal(tmp_path / "odd")
    assert said(models, "odd") != before


def test_what_fails_within_peft_is_taken_out_of_the_model_again(place, monkeypatch):
    import peft

    def fails(*args, **kwargs):
        raise RuntimeError("half-way")

    models = Models(None, (place,))
    before = said(models, models.base)
    with monkeypatch.context() as patch, pytest.raises(ModelError, match="half-way"):
        patch.setattr(peft, "set_peft_model_state_dict", fails)
        models.get("good")
    assert not [name for name, _ in models._plain.named_modules() if "lora" in name]
    shutil.copytree(place / "good", place / "twin")
    try:
        assert said(models, "twin") != before
        with monkeypatch.context() as patch, pytest.raises(ModelError, match="half-way"):
            patch.setattr(peft, "set_peft_model_state_dict", fails)
            os.utime(place / "good" / CONFIG)  # else it is remembered
            models.get("good")
        good = said(models, "twin")
        assert said(models, models.base) == before and list(models._untuned.model.peft_config) == ["a2"]
        os.utime(place / "good" / CONFIG)
        assert said(models, "good") == good
    finally:
        shutil.rmtree(place / "twin")


def test_an_adapter_of_another_base_is_left_out_before_its_plug_ins_are_looked_at(models, place, caplog):
    raw = json.loads((place / "good" / MANIFEST).read_text())["recipe"]
    recipe = {**raw, "base_model": {**raw["base_model"], "name": "elsewhere"}, "plugins": ["antigravity"]}
    own = {**raw, "plugins": ["antigravity"]}
    try:
        changed(place / "good", place / "stranger", manifest={"recipe": recipe})
        changed(place / "good", place / "coder", manifest={"recipe": own})
        assert "is on the base elsewhere" in refused(models, "stranger")
        assert "'antigravity', and a plug-in is code that runs here: pass --trust_plugins" in refused(
            models, "coder"
        )
        assert "antigravity" not in sys.modules
        assert "good" in models.folders()
    finally:
        for name in ("stranger", "coder"):
            shutil.rmtree(place / name)


def test_a_second_folder_of_a_name_and_a_place_that_is_gone_cost_nobody_else_an_answer(
    place, tmp_path, caplog
):
    first, second = tmp_path / "b", tmp_path / "a"
    second.mkdir()
    shutil.copytree(place / "good", first / "one")
    models = Models(None, (second, first))
    one = said(models, "one")
    changed(place / "good", second / "one", {"lora_alpha": 400})  # its place comes first, its name is taken
    assert models.folders()["one"].parent == first and "Two adapters are called one" in caplog.text
    models.unload("one")
    assert said(models, "one") == one
    caplog.clear()
    shutil.rmtree(second)
    assert models.names() == [models.base, "one"] and "which cannot be read" in caplog.text
    shutil.rmtree(first / "one")
    assert models.names() == [models.base]


def test_many_adapters_are_listed_from_what_is_known_of_them(place, tmp_path):
    for number in range(60):
        shutil.copytree(place / "good", tmp_path / f"a{number}")
    models = Models(None, (tmp_path,))
    begun = time.perf_counter()
    for name in models.names():
        assert len(models.tasks(name).names()) == 5
    assert len(models.names()) == 61 and time.perf_counter() - begun < 2


def test_a_slow_listing_does_not_keep_other_requests_waiting():
    from fintune.serving import api

    class Slow:
        default = "good"

        def __getattr__(self, name):
            def slow(*arguments):
                time.sleep(0.3)
                return [] if name in ("names", "loaded", "folders") else "good"

            return slow if name != "loaded" else list

    async def beside(work):
        ticks, task = 0, asyncio.ensure_future(work)
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    thread = SimpleNamespace(models=Slow())
    for work in (api.list_models(thread), api.list_adapters(thread), api.show_model("x", thread)):
        assert asyncio.run(beside(work)) > 5
