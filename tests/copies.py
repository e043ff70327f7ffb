"""Counts copies to another device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """While it is entered, `seen` collects the shape of each tensor that goes to another device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if function in copies and out.device != args[function is copies[1]].device:
            self.seen.append(out.shape)
        return out
