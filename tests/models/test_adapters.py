"""Adapters from elsewhere: plain ones answer as in PEFT, and others are refused by every way in."""

import json

import pytest
import torch
from adapter_folders import CONFIG, changed

from fintune.config import LoraConfig
from fintune.errors import ModelError
from fintune.inference.engine import Engine
from fintune.models import adapters
from fintune.models.export import export
from fintune.training.average import average

IDS = torch.arange(40).view(2, 20)
PER_LAYER = {"layers.1.self_attn.k_proj": 64}
QKV = ["q_proj", "k_proj", "v_proj"]


def base(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({"target_modules": "all-linear", "use_rslora": True}, {}),
        ({"target_modules": QKV, "use_dora": True, "lora_alpha": 12.5}, {}),
        ({"target_modules": QKV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": PER_LAYER}, {}),
        ({"target_modules": r".*\.layers\.1\..*_proj"}, {"target_modules": r".*\.layers\.1\..*_proj"}),
        ({"target_modules": ["q_proj", "embed_tokens"], "layers_to_transform": None}, {}),
        ({"target_modules": QKV, "task_type": None}, {"init_lora_weights": "gaussian", "a_new_field": None}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_plain_adapter_of_peft_answers_bit_for_bit_as_in_peft(tiny_base, tmp_path, fields, saved):
    import peft

    torch.manual_seed(1)
    made = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "r": 4} | fields
    peft.get_peft_model(base(tiny_base), peft.LoraConfig(**made)).save_pretrained(
        tmp_path, save_embedding_layers=False
    )
    raw = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**raw, "init_lora_weights": True, **saved}))
    ours = adapters.load_adapter(base(tiny_base), tmp_path)(IDS).logits
    assert torch.equal(ours, peft.PeftModel.from_pretrained(base(tiny_base), tmp_path)(IDS).logits)
    assert not torch.equal(ours, base(tiny_base)(IDS).logits)


def test_every_way_in_refuses_what_would_change_the_base(random_adapter, tiny_base, tmp_path):
    hostile = changed(random_adapter, tmp_path / "hostile", {"layer_replication": [[0, 2], [0, 2]]})
    lora = LoraConfig(init_adapter=str(hostile))
    for way in (
        lambda: Engine.load(hostile),
        lambda: export(hostile, tmp_path / "merged"),
        lambda: average([hostile, hostile], tmp_path / "mean"),
        lambda: adapters.check_start(lora, str(tiny_base)),
        lambda: adapters.start_from(None, lora, hostile, 1),
        lambda: adapters.rank(hostile),
    ):
        with pytest.raises(ModelError, match="sets layer_replication to"):
            way()
    assert not (tmp_path / "merged").exists() and not (tmp_path / "mean").exists()


def test_a_bias_is_loaded_where_the_base_is_the_adapters_own(tmp_path):
    import peft
    from families import small_llama

    def biased():
        return small_llama(num_hidden_layers=1, attention_bias=True).eval()

    config = peft.LoraConfig(
        r=2, target_modules=QKV, bias="all", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    made = peft.get_peft_model(biased(), config).eval()
    for name, value in made.named_parameters():
        if name.endswith("bias"):
            value.data += 0.5
    made.save_pretrained(tmp_path)
    assert torch.equal(adapters.load_adapter(biased(), tmp_path)(IDS).logits, made(IDS).logits)
    with pytest.raises(ModelError, match="its bias is all"):
        adapters.load_adapter(biased(), tmp_path, shared=True)
