"""What one of two processes of a test runs."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from fintune.config import BaseModelConfig, LoraConfig
from fintune.kernels import attention, likelihood, lora
from fintune.models.adapters import add_adapter
from fintune.models.base import load_base_model
from fintune.models.placement import Process
from fintune.prompts import TokenizedExample
from fintune.training.objectives import Scores
from fintune.training.run import train
from fintune.training.steps import StepBuilder


def trained(recipe, out):
    """A training of fintune's own; its folder has been prepared."""
    train(recipe, out, progress=False)


def main(base, examples_file, out, four_bit=False):
    """Three steps on a model that FSDP2 shards, its adapter saved by the first; one alone shards none.

    Accelerate shards on GPUs only, so this makes the calls that it makes, on a CPU with gloo.
    """
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    world = dist.get_world_size() if dist.is_initialized() else 1
    # PyTorch's meta device stands in for a GPU: weights that were loaded onto it would be lost. A base in 4
    # bit is quantized where it is computed with.
    gpu = torch.device("cpu" if four_bit else "meta")
    process = Process(gpu, sharded=True) if world > 1 else None
    model = load_base_model(BaseModelConfig(name=base, load_in_4bit=four_bit), torch.float32, process)
    model = add_adapter(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0))
    assert attention.enable(model)
    fast, layers = lora.enable(model)
    assert four_bit or fast == layers
    head = likelihood.frozen_head(model)
    assert head is not None
    rank = dist.get_rank() if dist.is_initialized() else 0
    if world > 1:
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        parts = [p for name, p in model.named_parameters() if "base_layer" in name]
        assert parts and all(2 * p.to_local().numel() == p.numel() for p in parts)
    examples = [
        TokenizedExample(*entry) for entry in json.loads(Path(examples_file).read_text(encoding="utf-8"))
    ]
    schedule = [range(0, 5), range(5, 6), range(6, 13)]  # the second has fewer examples than processes
    builder = StepBuilder(examples, schedule, {"a": 1.0, "b": 2.5}, 2, 999, True, rank, world)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for i in range(len(schedule)):
        step = builder[i]
        rows = torch.tensor(len(step.rows))
        if world > 1:
            dist.all_reduce(rows, dist.ReduceOp.MAX)
        step = step.padded(int(rows))
        for row in step.rows:
            nll = likelihood.target_nll(model, row.packed, True, head)
            scores = Scores(nll, row.packed.owner, row.packed.spans, None)
            ((row.weights * builder.objective.loss(scores, row)).sum() * world).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        save_file({k: v.contiguous() for k, v in state.items() if "lora_" in k}, out)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
