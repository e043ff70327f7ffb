"""Exports: the merged model and the GGUF answer as the adapter does; what cannot be written is refused."""

import json
import shutil

import pytest
import torch
from adapter_folders import make_tiny_base

from fintune.errors import ModelError
from fintune.inference.engine import Engine
from fintune.models.base import embedded_gguf
from fintune.models.export import export
from fintune.models.gguf import pre_tokenizer_name
from fintune.tasks import Record

IDS = torch.tensor([[1, 17, 2093, 311, 28, 2906]])
TEXTS = ["Operating profit rose to EUR 13.1 mn.", "The company cut 300 jobs.", "The AGM is in May."]


def shares(engine, **how):
    answers = engine.predict("sentiment", [Record(text=text) for text in TEXTS], **how)
    return [list(answer.probabilities.values()) for answer in answers]


def close(found, wanted, tolerance):
    return all(a == pytest.approx(b, abs=tolerance) for a, b in zip(found, wanted, strict=True))


def test_a_merged_folder_answers_as_the_adapter_whose_it_is(random_adapter, tmp_path):
    from fintune.models import manifest

    done = export(random_adapter, tmp_path / "merged", "merged", "f32")
    tuned = Engine.load(random_adapter)
    merged = Engine.load(done.folder)
    assert close(shares(merged), shares(tuned), 1e-4)
    assert not close(shares(tuned, use_adapter=False), shares(tuned), 0.05)
    question = Record(text="Revenue was $5 million.", question="What was revenue?")
    assert merged.predict("qa", [question])[0].value == tuned.predict("qa", [question])[0].value
    raw = manifest.read_raw(done.folder)
    assert raw["seed"] == 7 and raw["exported"] == {"format": "merged", "dtype": "f32"}
    with pytest.raises(ModelError, match=r"--output_dir is .*merged, which is not empty"):
        export(random_adapter, done.folder)


def test_transformers_reads_the_gguf_as_the_same_model_with_the_same_vocabulary(random_adapter_on, tmp_path):
    """Transformers undoes, on reading, what llama.cpp has otherwise: names, the order of rotated rows."""
    import gguf
    from transformers import AutoModelForCausalLM

    base = make_tiny_base(tmp_path / "base", whole_vocabulary=True)
    random_adapter = random_adapter_on(base, tmp_path / "adapter")
    done = export(random_adapter, tmp_path / "out", "gguf", "f32")
    (path,) = done.folder.glob("*.gguf")
    back = AutoModelForCausalLM.from_pretrained(done.folder, gguf_file=path.name, dtype=torch.float32)
    merged = export(random_adapter, tmp_path / "merged", "merged", "f32").folder
    wanted = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    assert torch.allclose(logits(back), wanted, atol=1e-3)
    assert done.vocabulary
    own, source = gguf.GGUFReader(path).fields, gguf.GGUFReader(embedded_gguf()).fields
    for key in ("model", "tokens", "token_type", "merges", "eos_token_id", "padding_token_id"):
        key = f"tokenizer.ggml.{key}"
        assert own[key].contents() == source[key].contents(), key


def adapter_with(base, folder, **lora):
    """A random adapter of this LoRA configuration, in plain PEFT, and its logits."""
    import peft
    from transformers import AutoModelForCausalLM

    from fintune.config import Recipe
    from fintune.models import manifest
    from fintune.tasks import task_set

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
    model = peft.get_peft_model(model, config)
    model.save_pretrained(folder, save_embedding_layers=False)
    raw = {"base_model": {"name": str(base)}, "training": {"bf16": False, "max_length": 256}}
    recipe = Recipe.model_validate(raw)
    manifest.write(folder, recipe, task_set(recipe), seed=7)
    return folder, logits(model.eval())


def logits(model):

    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["embed_tokens", "down_proj"], "use_rslora": True},
        {"target_modules": ["v_proj", "lm_head"], "use_dora": True},
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"q_proj": 3},
        },
    ],
    ids=["embeddings-rslora", "head-dora", "patterns"],
)
def test_what_is_merged_has_the_adapters_logits_also_where_head_and_embeddings_are_one(
    tiny_base, tmp_path, lora
):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    adapter, wanted = adapter_with(tiny_base, tmp_path / "adapter", **lora)
    said = []
    merged = export(adapter, tmp_path / "merged", "merged", "f32", say=said.append).folder
    own_head = {"lm_head", "embed_tokens"} & set(lora["target_modules"])
    config = json.loads((merged / "config.json").read_text())
    assert config["tie_word_embeddings"] is not bool(own_head) and bool(said) is bool(own_head)
    with safe_open(merged / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is bool(own_head)  # noqa: SIM118
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert torch.allclose(logits(found), wanted, atol=1e-4)
    gguf = export(adapter, tmp_path / "gguf", "gguf", "f32", say=said.append).folder
    found = AutoModelForCausalLM.from_pretrained(gguf, gguf_file="model-f32.gguf", dtype=torch.float32)
    assert torch.allclose(logits(found), wanted, atol=1e-3)


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_of_a_quantized_base_is_merged_into_what_it_was_trained_over(tiny_base, tmp_path, key):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")
    from transformers import AutoModelForCausalLM

    from fintune.kernels import lora
    from fintune.models import adapters, base, manifest

    adapter, plain = adapter_with(tiny_base, tmp_path / "adapter", target_modules="all-linear")
    recipe, tasks = manifest.read(adapter)
    recipe.base_model.__dict__[key] = True
    manifest.write(adapter, recipe, tasks)
    model = adapters.load_adapter(base.load_base_model(recipe.base_model, torch.float32), adapter)
    lora.enable(model)
    with torch.enable_grad():  # as in training: answers in 8 bit also round activations
        wanted = model(IDS).logits.detach()
    said = []
    merged = export(adapter, tmp_path / "merged", "merged", "f32", say=said.append).folder
    found = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    assert (found - wanted).abs().mean() < 0.01 * (found - plain).abs().mean()
    assert "bit base: it is merged" in said[0]


def test_a_sum_that_does_not_fit_the_dtype_is_refused(tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter, _ = adapter_with(tiny_base, tmp_path / "adapter", target_modules=["q_proj"])
    state = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value * 1e4 for name, value in state.items()}, adapter / "adapter_model.safetensors")
    (adapter / "fintune.json").unlink()
    with pytest.raises(ModelError, match=r"q_proj.weight does not fit into torch.float16: use --dtype bf16"):
        export(adapter, tmp_path / "merged", "merged", "f16")
    assert not (tmp_path / "merged").exists()


def test_vllms_layout_has_one_rank_and_scale_and_the_adapters_logits(tiny_base, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    pattern = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True}
    adapter, wanted = adapter_with(tiny_base, tmp_path / "a", target_modules=["q_proj", "v_proj"], **pattern)
    done = export(adapter, tmp_path / "vllm", "vllm")
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert (
        not {"rank_pattern", "modules_to_save", "use_dora", "use_rslora"} & config.keys() and config["r"] == 4
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert torch.allclose(logits(peft.PeftModel.from_pretrained(base, done.folder)), wanted, atol=1e-4)
    assert "--enable-lora --max-lora-rank 8 --lora-modules vllm=" in done.commands[0]
    dora, _ = adapter_with(tiny_base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ModelError, match=r"use_dora is true, but vLLM has no DoRA; merge it instead"):
        export(dora, tmp_path / "no", "vllm")


@pytest.mark.parametrize(
    ("dtype", "bits", "off"),
    [("q8_0", 8.5, 8e-3), ("q4_0", 4.5, 0.13)],
)
def test_a_gguf_of_each_dtype_is_read_back_as_the_model_it_was_made_of(tiny_base, tmp_path, dtype, bits, off):
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from fintune.config import Recipe

    recipe = Recipe.model_validate({"base_model": {"name": str(tiny_base)}})
    folder = export(None, tmp_path / "out", "gguf", dtype, recipe).folder
    reader = gguf.GGUFReader(folder / f"model-{dtype}.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert stored["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    down = stored["blk.1.ffn_down.weight"]
    assert down.tensor_type.name == dtype.upper() and down.n_bytes * 8 == down.n_elements * bits
    table = stored["token_embd.weight"]
    assert table.tensor_type.name == ("Q8_0" if dtype.startswith("q") else dtype.upper())
    weights = load_file(tiny_base / "model.safetensors")
    back = AutoModelForCausalLM.from_pretrained(folder, gguf_file=f"model-{dtype}.gguf", dtype=torch.float32)
    wanted = weights["model.layers.1.self_attn.k_proj.weight"]
    found = back.state_dict()["model.layers.1.self_attn.k_proj.weight"]
    assert float((found - wanted).norm() / wanted.norm()) < off
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]


def test_a_base_that_was_rounded_loses_an_adapters_changes_by_rounding_to_the_same_values(
    tiny_base, tmp_path
):
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    from fintune.config import Recipe
    from fintune.models.gguf import grid_warning

    recipe = Recipe.model_validate({"base_model": {"name": str(tiny_base)}})
    source = export(None, tmp_path / "q4_1", "gguf", "q4_1", recipe).folder / "model-q4_1.gguf"
    draw = np.random.default_rng(0)

    def rounded(values, dtype):
        kind = GGMLQuantizationType[dtype.upper()]
        return quants.dequantize(quants.quantize(values, kind), kind)

    base = rounded(draw.normal(size=(64, 64)).astype(np.float32), "q4_1")
    change = (0.02 * draw.normal(size=base.shape)).astype(np.float32)
    for dtype in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0"):
        kept = float(((rounded(base + change, dtype) - base) * change).sum() / (change**2).sum())
        assert (grid_warning(source, dtype) == "") is (0.7 < kept < 1.3), (dtype, kept)
    assert "rounded to q4_1" in grid_warning(source, "q4_1") and grid_warning(None, "q4_1") == ""


def test_a_gguf_has_the_template_and_the_ends_of_a_turn(tiny_base, tmp_path):
    """Of a base that ends a text otherwise than a turn, as Llama 3 does."""
    import gguf
    from transformers import AutoTokenizer

    from fintune.config import Recipe

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token, turn = "<|endoftext|>", tokenizer.eos_token_id
    tokenizer.save_pretrained(base)
    recipe = Recipe.model_validate({"base_model": {"name": str(base)}})
    folder = export(None, tmp_path / "out", "gguf", "q8_0", recipe).folder
    fields = gguf.GGUFReader(folder / "model-q8_0.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id != turn
    assert fields["tokenizer.ggml.eot_token_id"].contents() == turn
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_k_quants_are_llama_cpps_own(tiny_base, tmp_path, monkeypatch):
    from fintune.config import Recipe
    from fintune.errors import ConfigError

    recipe = Recipe.model_validate({"base_model": {"name": str(tiny_base)}})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"q4_k_m needs llama.cpp's llama-quantize, which is not on the PATH"
    ):
        export(None, tmp_path / "out", "gguf", "q4_k_m", recipe)
    tool = tmp_path / "llama-quantize"
    tool.write_text('#!/bin/sh\necho "$3" > "$2"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = export(None, tmp_path / "out", "gguf", "q4_k_m", recipe).folder
    assert (folder / "model-q4_k_m.gguf").read_text() == "Q4_K_M\n" and len([*folder.glob("*.gguf")]) == 1
    tool.write_text('#!/bin/sh\necho "unknown type" >&2; exit 1\n')
    with pytest.raises(ModelError, match="llama-quantize failed at --dtype q2_k: unknown type"):
        export(None, tmp_path / "no", "gguf", "q2_k", recipe)
    with pytest.raises(ConfigError, match=r"--dtype is q4_0, and --format merged takes f16, bf16 or f32"):
        export(None, tmp_path / "no", "merged", "q4_0", recipe)
    with pytest.raises(ConfigError, match=r"--dtype is int3, but the types are f16, bf16"):
        export(None, tmp_path / "no", "gguf", "int3", recipe)
    assert not (tmp_path / "no").exists()


def test_another_kind_of_base_is_refused_before_its_weights_are_read(tiny_base, tmp_path):
    from fintune.config import Recipe

    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(tiny_base / "tokenizer.json", base)
    config = json.loads((tiny_base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "gemma2", "architectures": []}))
    recipe = Recipe.model_validate({"base_model": {"name": str(base)}})
    with pytest.raises(ModelError, match=r"of the type gemma2, and GGUF files are written of llama, mistral"):
        export(None, tmp_path / "out", "gguf", recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_named_as_llama_cpp_does_or_not_at_all():
    from tokenizers import Regex, Tokenizer, models
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    plain = ByteLevel(add_prefix_space=False, use_regex=False)
    wanted = {
        "gpt-2": ByteLevel(add_prefix_space=False),
        "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
        "llama-bpe": Sequence([Split(Regex(words + r"\p{N}{1,3}" + rest), "isolated"), plain]),
        "qwen2": Sequence([Split(Regex(words + r"\p{N}" + rest), "isolated"), plain]),
        None: Metaspace(),
    }
    for name, pre in wanted.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        assert pre_tokenizer_name(json.loads(tokenizer.to_str())) == name
    tokenizer.pre_tokenizer = Sequence([Split(Regex(r"\p{N}"), "isolated"), plain])
    assert pre_tokenizer_name(json.loads(tokenizer.to_str())) is None
