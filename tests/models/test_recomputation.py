"""Gradient checkpointing: the same gradients, of layer inputs that may stand elsewhere."""

import peft
import pytest
import torch
from families import small_llama

from fintune.config import TrainingConfig
from fintune.errors import ConfigError
from fintune.kernels import lora
from fintune.models import recomputation

IDS = torch.arange(3, 21).view(2, 9)


def adapted():
    lora_config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(small_llama(num_hidden_layers=3), lora_config).train()


def gradients(model):
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    found = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return found


@pytest.mark.parametrize("fast", [True, False])
def test_inputs_of_layers_alone_are_moved(monkeypatch, fast):
    """Each once there and once back, and the gradients are those of layers that keep all."""
    model = adapted()
    plain = gradients(model)
    moved = []

    class Recorded(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory):
            super().__init__(self.there, self.back)

        def there(self, tensor):
            moved.append(("there", tuple(tensor.shape)))
            return tensor.numpy(force=True).copy()

        def back(self, held):
            moved.append(("back", held.shape))
            return torch.from_numpy(held)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Recorded)
    recomputation.enable(model, offload=True)
    if fast:
        lora.enable(model)
    torch.testing.assert_close(gradients(model), plain)
    assert moved == [("there", (2, 9, 32))] * 3 + [("back", (2, 9, 32))] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_can_leave_it():
    with pytest.raises(ConfigError, match=r"gradient_checkpointing_offload is true.*set it to false"):
        recomputation.check(TrainingConfig(gradient_checkpointing=True, gradient_checkpointing_offload=True))
    recomputation.check(TrainingConfig(gradient_checkpointing=True))
