"""A model whose linear layers bitsandbytes quantizes in place, without a checkpoint to load."""

import torch


def quantize(model, bits, keep=("lm_head",), kind="nf4"):
    """The model with its linear layers in 4 or 8 bit, as Transformers would load it, for PEFT to wrap."""
    import bitsandbytes as bnb

    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not torch.nn.Linear or name in keep:
                continue
            shape, biased = (linear.in_features, linear.out_features), linear.bias is not None
            weight = linear.weight.data
            if bits == 4:
                own = bnb.nn.Linear4bit(*shape, biased, weight.dtype, True, kind)
                own.weight = bnb.nn.Params4bit(weight, False, quant_type=kind, compress_statistics=True)
                own.support_avx512bf16_for_cpu = False
            else:
                own = bnb.nn.Linear8bitLt(*shape, biased, has_fp16_weights=False, threshold=6.0)
                own.weight = bnb.nn.Int8Params(weight, False, has_fp16_weights=False)
            own.bias = linear.bias
            setattr(parent, name, own.to("cpu"))
    setattr(model, f"is_loaded_in_{bits}bit", True)
    return model.requires_grad_(False)
