"""How many operators a training step runs: what a GPU must be told, one launch each.

    python benchmarks/operators.py [--json PATH] [--compiled] [--dtype bf16|fp32]

Two narrow layers in the form of Llama with LoRA on all seven projections, one row of 128 short examples with
a shared beginning, forward and backward; counted by the profiler on the CPU, less what stands outside the
layers, and scaled to 32 layers. Attention is left out: it is one kernel on a GPU, and many operators here.
With `--compiled` the layers are compiled, and each fused kernel counts as one operator.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from typing import Any
from unittest.mock import patch

from harness import Clock, arguments, fintune_trainer, save

LAYERS = 32
KINDS = ("mm", "mul", "copy_", "add", "cat", "other", "fused")


def counts(layers: int, dtype: Any, compile_layers: bool) -> Counter[str]:
    """The operators of one step of a model with so many layers, by kind."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fintune.config import LoraConfig
    from fintune.kernels import attention
    from fintune.models.adapters import add_adapter
    from fintune.models.base import load_tokenizer
    from fintune.prompts import TokenizedExample
    from fintune.tasks import TaskSet, known_tasks

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=layers, num_key_value_heads=4, vocab_size=len(tokenizer), **shape
    )
    base = AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False)
    model = add_adapter(base, LoraConfig(r=8, lora_dropout=0.0))
    examples = [
        TokenizedExample([1] * 40 + [3 + i % 99] * (i % 30 + 5), [7, 2], "headline") for i in range(128)
    ]
    tasks = TaskSet({"headline": known_tasks()["headline"]})
    with tempfile.TemporaryDirectory() as folder:
        common = arguments(folder, bf16=dtype == torch.bfloat16, use_cpu=True)
        trainer = fintune_trainer(model, tokenizer, tasks, examples, common, Clock(), 128, 65_536)
    if compile_layers:
        from fintune.kernels import compiled

        torch._inductor.config.cpp.enable_kernel_profile = True
        compiled.enable(model)
    step = trainer.train_dataset[0]
    passed = patch.object(attention, "block_attention", lambda q, *args, **kwargs: q.transpose(1, 2))
    with passed:
        trainer.training_step(model, step)  # what is made once, and compiled
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            trainer.training_step(model, step)
    found: Counter[str] = Counter()
    for event in profile.events():
        name = event.name.removeprefix("aten::")
        if "cpp_fused" in name:
            found["fused"] += 1
        elif event.name.startswith("aten::") and not _only_calls(event):
            kind = "mm" if name in ("mm", "addmm", "addmm_", "bmm") else name.rstrip("_")
            kind = "copy_" if kind == "copy" else kind
            found[kind if kind in KINDS else "other"] += 1
    return found


def _only_calls(event: Any) -> bool:
    """Whether the operator only makes a view or memory, or calls another that is counted."""
    views = (
        "view reshape t transpose permute slice select split expand as_strided unsqueeze squeeze detach empty"
    )
    views += (
        " alias narrow unbind chunk empty_like empty_strided resolve_conj resolve_neg to _to_copy result_type"
    )
    views += (
        " new_empty unflatten flatten _unsafe_view item _local_scalar_dense lift_fresh is_nonzero zeros ones"
    )
    name = event.name.removeprefix("aten::")
    called = [child for child in event.cpu_children if child.name.startswith("aten::")]
    return name in views.split() or bool(
        name in ("linear", "matmul", "zero_", "new_zeros", "contiguous") and called
    )


def main() -> None:
    import torch

    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--json", metavar="PATH", help="write a flat object, name → number")
    flags.add_argument("--compiled", action="store_true")
    flags.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    args = flags.parse_args()
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    few, more = (counts(n, dtype, args.compiled) for n in (2, 4))
    flat = {kind: (more[kind] - few[kind]) / 2 * LAYERS for kind in KINDS}
    flat["all"] = sum(flat.values())
    print("  ".join(f"{kind} {count:,.0f}" for kind, count in flat.items()))
    save(args.json, flat)


if __name__ == "__main__":
    main()
