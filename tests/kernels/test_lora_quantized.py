"""Fast LoRA layers on 4- and 8-bit bases compute what PEFT's compute there, from the same dense weights."""

import copy

import peft
import pytest
import torch
from families import small_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import quantize
from torch.utils._python_dispatch import TorchDispatchMode

from fintune.kernels import lora
from fintune.kernels.frozen import dense, reader_of
from fintune.kernels.lora_linears import lora_plain
from fintune.models import recomputation

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[gpu]'")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 21).view(2, 9)


class Layers(torch.nn.Module):
    """Linear layers on one input, of different widths."""

    def __init__(self, inputs, outputs, biases, dtype):
        super().__init__()
        for i, width in enumerate(outputs):
            setattr(self, f"part{i}", torch.nn.Linear(inputs, width, biases, dtype=dtype))
        self.x = torch.randn(1, 5, inputs, dtype=dtype)
        self.device = self.x.device

    def forward(self, input_ids=None, use_cache=False, x=None):
        return [part(self.x if x is None else x) for part in self.children()]


def results(model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    outs = model(x=x)
    sum((i + 1) * out.float().square().mean() for i, out in enumerate(outs)).backward()
    return [*outs, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def assert_near(ours, plain, near):
    for own, expected in zip(ours, plain, strict=True):
        assert own.dtype == expected.dtype
        assert (own - expected).norm() <= near * expected.norm() + 1e-7


@settings(max_examples=15)
@given(
    bits=st.sampled_from(["nf4", "fp4", "int8"]),
    dtype=st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 0.03)]),
    inputs=st.integers(2, 40).map(lambda half: 2 * half),  # of 2 numbers bitsandbytes takes the transpose
    outputs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rank=st.integers(1, 6),
    biases=st.booleans(),
    dora=st.booleans(),
    seed=st.integers(0, 9),
)
def test_layers_of_any_shape_are_pefts_layers(bits, dtype, inputs, outputs, rank, biases, dora, seed):
    torch.manual_seed(seed)
    dtype, near = dtype
    model = Layers(inputs, outputs, biases, dtype)
    x = torch.randn(2, 7, inputs, dtype=dtype)
    model = quantize(model, 8, keep=()) if bits == "int8" else quantize(model, 4, (), bits)
    targets = [name for name, _ in model.named_children()]
    config = peft.LoraConfig(
        r=rank, lora_alpha=3, target_modules=targets, use_dora=dora, init_lora_weights=False
    )
    model = peft.get_peft_model(model, config).train()
    fast = copy.deepcopy(model)
    assert lora.enable(fast) == (len(outputs), len(outputs))
    assert len({id(layer.fintune_group) for layer in fast.base_model.model.children()}) == 1
    plain = results(model, x)
    assert_near(results(fast, x), plain, near)
    with torch.no_grad():
        if bits == "int8" and dora:  # PEFT loses the scales at its first forward pass on a CPU
            answers, near = plain[: len(outputs)], max(near, 0.05)  # LLM.int8 rounds activations
        else:
            answers = model.eval()(x=x)
        assert_near(fast.eval()(x=x), answers, near)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_is_plain_lora_on_the_dense_weight(bits):
    torch.manual_seed(0)
    model = Layers(32, [48], True, torch.float32)
    whole, x = model.part0.weight.data.clone(), torch.randn(3, 32)
    base = quantize(model, bits, keep=()).part0
    weight = dense(reader_of(base)(base), torch.float32)
    assert (weight - whole).norm() < (0.15 if bits == 4 else 0.01) * whole.norm()
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["part0"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    lora.enable(model)
    layer = model.base_model.model.part0
    ab = [[layer.lora_A["default"].weight], [layer.lora_B["default"].weight]]
    (expected,) = lora_plain(x, None, [3.0], [weight], [base.bias], *ab)
    torch.testing.assert_close(layer(x), expected)


def llama(bits, dtype=torch.float32, **changes):
    base = small_llama(hidden_size=64, intermediate_size=96, initializer_range=0.1)
    model = quantize(base.to(dtype), bits)
    lora_config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**(lora_config | changes))).train()


def step(model):
    out = model(input_ids=IDS, labels=IDS, use_cache=False)
    out.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return [out.logits.detach(), *gradients]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_model_with_fast_layers_is_pefts_model(bits, dora, checkpointed):
    model = llama(bits, use_dora=dora)
    plain = step(copy.deepcopy(model))  # which loses the scales of 8 bit with DoRA on a CPU
    assert lora.enable(model) == (14, 14)
    if checkpointed:
        recomputation.enable(model)
    assert_near(step(model), plain, 1e-4)


class Counted(TorchDispatchMode):
    """How often operators ran, by their name; of casts those of tensors of `ranks` rows or columns alone."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.calls = rank, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name != "_to_copy" or self.rank in args[0].shape:
            self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_weight_is_made_dense_once_a_pass_and_adapters_are_cast_once_a_step(checkpointed):
    """Two rows of a step; a checkpointed layer's last product is not computed again."""
    model = llama(4, torch.bfloat16, r=3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lora.enable(model)
    if checkpointed:
        recomputation.enable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        with Counted(rank=3) as counted:
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            first = dict(counted.calls)
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        # Two layers of 7, forward and backward; the first q, k and v have no gradient to hand on.
        passes = 2 * 7 * 2 + (2 * 6 if checkpointed else -3)
        assert first["dequantize_4bit"] == passes
        assert counted.calls["dequantize_4bit"] == 2 * passes
        casts_back = 2 * (2 + 7)  # of gradients to fp32: those of o's and down's A, and of every B
        assert first["_to_copy"] == 2 * 14 + casts_back
        assert counted.calls["_to_copy"] == 2 * 14 + 2 * casts_back
        optimizer.step()
        optimizer.zero_grad()
