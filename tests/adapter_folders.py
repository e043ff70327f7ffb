"""Folders of adapters, as others may hand them in."""

import hashlib
import json
import shutil

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "fintune.json"


def reseal(folder):
    """Let the manifest be of the weights that are there now."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))


def changed(source, target, config=None, weights=None, manifest=None):
    """A copy of an adapter with other fields, tensors (a function of the old ones) and manifest."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for name, fields in ((CONFIG, config), (MANIFEST, manifest)):
        raw = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps({**raw, **(fields or {})}))
    if weights:
        save_file(weights(load_file(target / WEIGHTS)), target / WEIGHTS, {"format": "pt"})
        reseal(target)
    return target


def make_tiny_base(folder, whole_vocabulary=False):
    """A folder with a random two-layer Llama (0.3 M parameters, fp32) and a tokenizer that loads at once:
    SmolLM2's special tokens and chat template, with the 3,000 or so tokens that the sample's texts need, or
    with all of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fintune.data.raw.sample import SIZES, sample_records
    from fintune.models.base import load_tokenizer
    from fintune.tasks import known_tasks

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    if not whole_vocabulary:
        records = [record for task in SIZES for record in sample_records(task)]
        texts = [f"{record.text} {record.question or ''} {record.target}" for record in records]
        for task in known_tasks().values():
            texts += [task.instruction] * 9 + list(task.labels) * 99  # a label is one token, as SmolLM2's
        tokenizer = tokenizer.train_new_from_iterator(texts, 4096)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_random_adapter(base, folder, seed=0, **sections):
    """An adapter of random weights, which answers quite otherwise than its base; returns its folder.

    Args:
        sections: further ones of its recipe.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from fintune.config import Recipe
    from fintune.models import manifest
    from fintune.tasks import task_set

    raw = {"base_model": {"name": str(base)}, "training": {"bf16": False, "max_length": 256}, **sections}
    recipe = Recipe.model_validate(raw)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(folder)
    manifest.write(folder, recipe, task_set(recipe), seed=7)
    return folder
