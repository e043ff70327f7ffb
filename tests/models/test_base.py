"""Base models: the guide's numbers, GGUF conversion, precision, quantization, and what goes wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fintune.config import BaseModelConfig, LoraConfig, TrainingConfig
from fintune.errors import MissingExtraError, ModelError
from fintune.models import base
from fintune.models.adapters import add_adapter, count_parameters
from fintune.recipes import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_guides_llama_2_7b_has_40_million_trainable_parameters():
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = load_recipe(CONFIGS / "llama-2-7b.yaml")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000))  # the class's defaults are Llama-2-7B's
        trainable, total = count_parameters(add_adapter(model, recipe.lora_config))
    assert trainable == 39_976_960
    assert round(100 * trainable / total, 2) == 0.59


def test_the_embedded_gguf_is_converted_once_and_loads_as_an_instruct_model():
    folder = base.convert_gguf(base.embedded_gguf())
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert base.convert_gguf(base.embedded_gguf()) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (576, 30)
    assert "<|im_start|>" in base.load_tokenizer(base.EMBEDDED).chat_template


def test_fp16_without_a_gpu_falls_back_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(base, "_cpu_has_bf16", lambda has_bf16=has_bf16: has_bf16)
        precision = base.choose_precision(TrainingConfig(fp16=True))
        assert precision.dtype == dtype and not precision.fp16
        assert "needs a CUDA GPU" in precision.note


def test_a_damaged_model_folder_or_gguf_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged, of an unknown architecture"):
        base.load_base_model(BaseModelConfig(name=str(tmp_path)), torch.float32)
    (tmp_path / "cut.gguf").write_bytes(base.embedded_gguf().read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
        base.resolve(str(tmp_path / "cut.gguf"))
    with pytest.raises(ModelError, match="no such file"):
        base.resolve(str(tmp_path / "absent.gguf"))
    with pytest.raises(ModelError, match="no such folder"):
        base.resolve("./absent")


def test_target_modules_that_the_base_does_not_have_are_named_also_beside_right_ones(tiny_base):
    model = base.load_base_model(BaseModelConfig(name=str(tiny_base)), torch.float32)
    for names, message in (
        (["c_attn"], "names 'c_attn', which the base model does not have; valid are: down_proj, .*q_proj"),
        (["q_proj", "v_prj"], "names 'v_prj', .*; did you mean 'v_proj'"),
        (["q_proj", "self_attn"], "is .*'self_attn'.*, but PEFT cannot adapt them all"),
    ):
        with pytest.raises(ModelError, match=f"lora_config.target_modules {message}"):
            add_adapter(model, LoraConfig(target_modules=names))


@pytest.mark.parametrize("wish", ["all-linear", ["all-linear"]])
def test_all_linear_adapts_every_linear_layer_but_the_head(tiny_base, wish):
    model = base.load_base_model(BaseModelConfig(name=str(tiny_base)), torch.float32)
    model = add_adapter(model, LoraConfig(target_modules=wish))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapted) == 2 * 7 and not any("lm_head" in name for name in adapted)


def test_quantized_loading_without_bitsandbytes_says_what_to_install(monkeypatch, tiny_base):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"load_in_4bit needs .* pip install 'bitsandbytes"):
        base.load_base_model(BaseModelConfig(name=str(tiny_base), load_in_4bit=True), torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_trains_saves_reloads_and_predicts(bits, workdir, tiny_base):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")
    from fintune.config import Recipe
    from fintune.data.raw.sample import sample_records
    from fintune.inference.engine import Engine
    from fintune.training.run import train

    recipe = Recipe.model_validate(
        {
            "base_model": {"name": str(tiny_base), f"load_in_{bits}bit": True},
            "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0},
            "training": {
                "max_steps": 3,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 1,
                "learning_rate": 2e-3,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "logging_steps": 1,
                "eval_steps": 1,
            },
            "multi_task": {"task_weights": {"headline": 1}},
            "data": {"tasks": {"headline": {"dataset": "sample", "max_train": 12, "max_validation": 4}}},
        }
    )
    train(recipe, workdir / "out", progress=False)
    # B starts at 0: where a frozen layer passes no gradient back, the layers before it stay there.
    saved = load_file(workdir / "out" / "adapter_model.safetensors")
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)
    engine = Engine.load(workdir / "out")
    layer = engine.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert type(layer).__name__ == {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    records = [r for r in sample_records("headline") if r.split == "test"][:4]
    tuned, untuned = (
        engine.predict("headline", records),
        engine.predict("headline", records, use_adapter=False),
    )
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-6 for p in tuned)
    assert any(a.probabilities != b.probabilities for a, b in zip(tuned, untuned, strict=True))


def test_a_tokenizer_whose_answers_would_never_end_is_refused(tiny_base, tmp_path):
    tokenizer = base.load_tokenizer(str(tiny_base))
    tokenizer.eos_token = None
    shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="has no end-of-text token"):
        base.load_tokenizer(str(tmp_path / "base"))


def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(tiny_base):
    import transformers

    from fintune.inference.engine import Engine
    from fintune.tasks import TaskSet, known_tasks

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = base.load_tokenizer(str(tiny_base))
    tokenizer.add_tokens(["<one>", "<two>"])
    while len(tokenizer) <= model.get_input_embeddings().weight.shape[0]:
        tokenizer.add_tokens([f"<{len(tokenizer)}>"])
    with pytest.raises(ModelError, match="a text with one of the others would fail"):
        Engine(model, tokenizer, TaskSet({"qa": known_tasks()["qa"]}), 64, "base")


@pytest.mark.parametrize("told", ["{{ strftime_now('%d %b %Y') }}", '{{strftime_now("%d %b %Y")}}'])
def test_a_template_that_tells_the_date_is_asked_tomorrow_as_it_was_trained(tiny_base, tmp_path, told):
    shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = base.load_tokenizer(str(tiny_base))
    tokenizer.chat_template = told + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "base")
    found = base.load_tokenizer(str(tmp_path / "base"))
    asked = found.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    assert asked.startswith("26 Jul 2024<|im_start|>")
