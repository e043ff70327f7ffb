"""The plan: exact parameters from a `config.json` alone, and advice where memory is short."""

from pathlib import Path

import pytest

from fintune.cli import main
from fintune.planning import advice, estimate
from fintune.recipes import load_recipe

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
    assert main(["plan", "--set", "base_model.name=nobody/nothing"]) == 1
    assert "config.json of base_model.name = nobody/nothing" in capsys.readouterr().err
