"""The plan: exact parameters from a `config.json` alone, and advice where memory is short."""

from pathlib import Path

import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.planning import advice, estimate, row_tokens_for, speed
from fintune.planning.speed import Machine
from fintune.recipes import load_recipe
from fintune.training import memory
from fintune.training.fit import with_row_tokens
from fintune.training.memory import Shape

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder that holds Llama-2-7B's configuration and nothing else."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("llama-2-7b")
    LlamaConfig(vocab_size=32000, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return folder


def plan(llama, *overrides):
    recipe = load_recipe(CONFIGS / "llama-2-7b.yaml", [f"base_model.name={llama}", *overrides])
    return estimate(recipe, device="cuda")


def test_the_guides_recipe_has_its_parameters_and_fits_its_gpu(llama, workdir):
    need = plan(llama)
    assert need.trainable_parameters == 39_976_960
    assert need.all_parameters == 39_976_960 + 6_738_415_616
    assert need.adapter_bytes == 4 * 39_976_960  # fp32; the guide's 100 MB lies between 16 and 32 bit
    assert 8e9 < need.peak_bytes < 16e9


def test_all_linear_counts_every_linear_layer_but_the_head(llama, workdir):
    named = plan(llama)  # names all seven of a Llama's layers
    both = (
        plan(llama, "lora_config.target_modules=all-linear"),
        plan(llama, "lora_config.target_modules=[all-linear]"),
    )
    assert {need.trainable_parameters for need in both} == {named.trainable_parameters}


def test_each_saving_saves_where_it_should(llama, workdir):
    eight, four = plan(llama), plan(llama, "base_model.load_in_4bit=true")
    assert four.weight_bytes < 0.6 * eight.weight_bytes
    assert plan(llama, "training.gradient_checkpointing=false").activation_bytes > 5 * eight.activation_bytes
    assert plan(llama, "training.row_tokens=1024").activation_bytes < eight.activation_bytes


def test_a_base_with_windows_is_planned_in_rows_of_several_examples(tmp_path, workdir):
    """A window hides tokens of a row; it does not keep examples apart."""
    from transformers import MistralConfig

    MistralConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
        architectures=["MistralForCausalLM"],
    ).save_pretrained(tmp_path)
    length = load_recipe(CONFIGS / "llama-2-7b.yaml").training.max_length
    assert plan(tmp_path).tokens > length


def test_what_does_not_fit_is_told_with_what_to_change(llama, workdir):
    recipe = load_recipe(CONFIGS / "llama-2-7b.yaml")
    need = plan(llama)
    small = type(need)(**{**need.__dict__, "available_bytes": 4 * 10**9})
    assert "load_in_4bit: true" in advice(recipe, small)
    assert advice(recipe, type(need)(**{**need.__dict__, "available_bytes": 10**12})) == "It fits."


def test_the_command_prints_the_plan_and_names_a_base_it_cannot_read(tiny_base, workdir, capsys):
    assert (
        main(["plan", "--config", str(CONFIGS / "debug.yaml"), "--set", f"base_model.name={tiny_base}"]) == 0
    )
    assert "peak memory" in capsys.readouterr().out
    assert main(["plan", "--set", "base_model.name=nobody/nothing"]) == 2
    assert "config.json of base_model.name = nobody/nothing" in capsys.readouterr().err


H100 = Machine("cuda", 778e12, 3.0e12)
"""2026-11-27: its matrix peak was measured; of its memory's 3.35 TB/s nine tenths are taken."""
MEASURED = {"1.1": (0.198, None), "6.7": (0.421, 33.8)}
"""Billions of parameters → seconds of a step of 128 headlines, 3,690 tokens in one pass, and peak GiB of
tensors, in bf16 with FlexAttention, on an H100 at commit 04cadba (2026-11-27)."""


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """A function: billions of parameters → a folder with the configuration that the H100 was timed with."""
    from transformers import LlamaConfig

    sizes = {"1.1": (2048, 8192, 16, 8), "6.7": (4096, 11008, 32, 32)}

    def folder(name):
        h, m, layers, keys = sizes[name]
        made = tmp_path_factory.mktemp(f"llama-{name}")
        LlamaConfig(
            vocab_size=49152,
            hidden_size=h,
            intermediate_size=m,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=keys,
            tie_word_embeddings=True,
            architectures=["LlamaForCausalLM"],
        ).save_pretrained(made)
        return made

    return folder


def recipe_on(folder, base=None, training=None):
    lora = {"r": 16, "lora_dropout": 0.0}
    return Recipe.model_validate(
        {
            "base_model": {"name": str(folder), **(base or {})},
            "lora_config": lora,
            "training": {"load_best_model_at_end": False, **(training or {})},
        }
    )


@pytest.mark.parametrize("name", MEASURED)
def test_the_model_of_a_gpu_says_what_an_h100_measured(shaped, name):
    from fintune.training.throughput import FlopCount

    recipe = recipe_on(shaped(name))
    model, _ = memory.laid_out(recipe)
    shape, tokens = Shape.of(model), 3690
    seconds, gib = MEASURED[name]
    flops = FlopCount(model)(tokens, 256)
    assert speed.seconds(H100, recipe, shape, flops, tokens, 1) == pytest.approx(seconds, rel=0.2)
    if gib:
        need = memory.weight_bytes(shape, recipe, 2) + memory.adapter_bytes(shape, recipe)
        need += tokens * memory.token_bytes(shape, recipe) + memory.logit_bytes(shape, 256)
        assert need / 2**30 == pytest.approx(gib, rel=0.1)


def test_the_token_budget_of_a_pass_grows_with_free_memory_and_what_saves_it(shaped):
    folder = shaped("6.7")
    free = [row_tokens_for(recipe_on(folder), gib * 2**30) for gib in (4, 24, 40, 80, 640)]
    assert free == sorted(free) and (free[0], free[-1]) == (1024, 65536)
    assert all(tokens % 1024 == 0 for tokens in free) and 8192 < free[3] < 16384
    four = row_tokens_for(recipe_on(folder, {"load_in_4bit": True}), 24 * 2**30)
    again = {"gradient_checkpointing": True}
    checkpointed = row_tokens_for(recipe_on(folder, {"load_in_4bit": True}, again), 24 * 2**30)
    assert free[1] < four < checkpointed


@pytest.mark.parametrize("base", [{}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_a_pass_of_the_budget_fits_the_memory_that_it_was_made_for(shaped, base):
    recipe = recipe_on(shaped("6.7"), base)
    tokens, free = row_tokens_for(recipe, 40 * 2**30), 40 * 2**30
    fixed = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(
                update={"row_tokens": tokens, "per_device_train_batch_size": 10_000, "max_length": 1024}
            )
        }
    )
    need = estimate(fixed, machine=H100)
    assert need.tokens == pytest.approx(tokens, rel=0.01) and 0.75 * free < need.peak_bytes < 0.92 * free


def test_on_a_gpu_its_free_memory_decides(shaped, monkeypatch):
    import torch

    recipe = recipe_on(shaped("6.7"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
    assert with_row_tokens(recipe).training.row_tokens == row_tokens_for(recipe, 40 * 2**30)
    assert with_row_tokens(recipe, "cpu").training.row_tokens == 4096


def test_a_budget_that_is_set_stays_and_a_cpu_has_its_own():
    assert with_row_tokens(Recipe()).training.row_tokens == 4096
    asked = Recipe.model_validate({"training": {"row_tokens": 999}})
    assert with_row_tokens(asked) is asked
    on_gpu = with_row_tokens(Recipe(), "cuda").training.row_tokens  # planned for a GPU that is not here
    assert on_gpu == 4096


def test_a_measured_machine_is_planned_by_what_was_measured(tiny_recipe, tmp_path, monkeypatch, capsys):
    from fintune.commands.common import plain
    from fintune.data.prepare.dataset import prepare
    from fintune.errors import DataError
    from fintune.planning import as_dict, measuring, show

    monkeypatch.setattr(speed, "_path", lambda: tmp_path / "calibrations.json")
    monkeypatch.setattr(measuring, "SECONDS", 1)
    recipe = tiny_recipe()
    with pytest.raises(DataError, match="fintune data prepare"):
        measuring.measure(recipe)
    prepare(recipe, say=lambda line: None)
    guessed = estimate(recipe)
    assert guessed.calibration is None
    found = measuring.measure(recipe)
    need = estimate(recipe)
    assert need.calibration == found and 0 < need.seconds_per_epoch < 60
    assert need.seconds_per_epoch == pytest.approx(found.seconds(need.tokens_per_epoch, 2))
    show(recipe, need)
    assert "measured here on" in capsys.readouterr().out.replace("\n", " ")
    told = plain(as_dict(recipe, need))
    assert (
        told["fits"] and told["peak_bytes"] == need.peak_bytes and told["calibration"]["date"] == found.date
    )
    assert estimate(tiny_recipe(lora_config={"use_dora": True})).calibration is None  # other work
    assert estimate(recipe, device="cuda").calibration is None  # another device
    (tmp_path / "calibrations.json").write_text("{")
    assert estimate(recipe).calibration is None


def test_quantized_bases_are_measured_too(tiny_recipe, tmp_path, monkeypatch):
    from fintune.data.prepare.dataset import prepare
    from fintune.planning import measuring

    pytest.importorskip("bitsandbytes", reason="4 and 8 bit need the gpu extra")
    monkeypatch.setattr(speed, "_path", lambda: tmp_path / "calibrations.json")
    monkeypatch.setattr(measuring, "SECONDS", 0.5)
    recipe = tiny_recipe(base_model={"load_in_4bit": True}, training={"gradient_checkpointing": True})
    prepare(recipe, say=lambda line: None)
    assert measuring.measure(recipe).seconds_per_token_layer >= 0
