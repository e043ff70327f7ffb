"""Exports: the merged model and the GGUF answer as the adapter does; what cannot be written is refused."""

import json
import shutil

import pytest

from fintune.errors import ModelError
from fintune.inference.engine import Engine
from fintune.models.base import embedded_gguf
from fintune.models.export import export
from fintune.models.gguf import pre_tokenizer_name
from fintune.tasks import Record

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


def test_transformers_reads_the_gguf_as_the_same_model_with_the_same_vocabulary(random_adapter, tmp_path):
    """Transformers undoes, on reading, what llama.cpp has otherwise: names, the order of rotated rows."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    done = export(random_adapter, tmp_path / "out", "gguf", "f32")
    (path,) = done.folder.glob("*.gguf")
    back = AutoModelForCausalLM.from_pretrained(done.folder, gguf_file=path.name, dtype=torch.float32)
    merged = export(random_adapter, tmp_path / "merged", "merged", "f32").folder
    ids = torch.tensor([[1, 17, 4093, 311, 28, 9906]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ids).logits
        assert torch.allclose(back(ids).logits, wanted, atol=1e-3)
    assert done.vocabulary
    own, source = gguf.GGUFReader(path).fields, gguf.GGUFReader(embedded_gguf()).fields
    for key in ("model", "tokens", "token_type", "merges", "eos_token_id", "padding_token_id"):
        key = f"tokenizer.ggml.{key}"
        assert own[key].contents() == source[key].contents(), key


@pytest.mark.parametrize(("dtype", "size"), [("f16", 2), ("bf16", 2)])
def test_the_dtype_is_that_of_the_matrices(tiny_base, tmp_path, dtype, size):
    import gguf
    import torch
    from safetensors.torch import load_file

    from fintune.config import Recipe

    recipe = Recipe.model_validate({"base_model": {"name": str(tiny_base)}})
    folder = export(None, tmp_path / "out", "gguf", dtype, recipe).folder
    reader = gguf.GGUFReader(folder / f"model-{dtype}.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert stored["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    table = stored["token_embd.weight"]
    assert table.tensor_type.name == dtype.upper() and table.n_bytes == table.n_elements * size
    values = torch.from_numpy(gguf.quants.dequantize(table.data, table.tensor_type))
    wanted = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.allclose(values, wanted, rtol=2.0**-8, atol=1e-6)


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
