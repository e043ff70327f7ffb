"""What is derived of weights is made anew when they change, however they do, and only then."""

import copy

import pytest
import torch

from fintune.kernels.derived import Derived


def weight():
    return torch.nn.Parameter(torch.ones(3))


def in_place(w):
    with torch.no_grad():
        w.add_(1)


def storage(w):
    w.data = w.data + 1


def loaded(w):
    module = torch.nn.Module()
    module.w = w
    module.load_state_dict({"w": w.detach() + 1})


def stepped(kind, **options):
    def change(w):
        w.grad = torch.ones_like(w)
        kind([w], lr=0.5, **options).step()

    return change


class ThroughPointers(torch.optim.Optimizer):
    """As bitsandbytes' optimizers write: no version is counted."""

    def __init__(self, weights, lr):
        super().__init__(weights, {"lr": lr})

    def step(self, closure=None):
        for w in self.param_groups[0]["params"]:
            w.data.add_(1)


CHANGES = {
    "in place": in_place,
    "storage": storage,
    "loaded": loaded,
    "AdamW": stepped(torch.optim.AdamW),
    "AdamW, fused": stepped(torch.optim.AdamW, fused=True),
    "AdamW, foreach": stepped(torch.optim.AdamW, foreach=True),
    "SGD": stepped(torch.optim.SGD),
    "through pointers": stepped(ThroughPointers),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change):
    w = weight()
    derived = Derived([w])
    first = derived.get([w], "key", lambda: w * 2)
    assert derived.get([w], "key", lambda: w * 2) is first
    assert not first.requires_grad
    change(w)
    torch.testing.assert_close(derived.get([w], "key", lambda: w * 2), w.detach() * 2)
    assert not torch.equal(w * 2, first)


def test_another_key_is_another_value():
    w = weight()
    derived = Derived([w])
    assert derived.get([w], torch.float16, lambda: w.half()).dtype == torch.float16
    assert derived.get([w], torch.bfloat16, lambda: w.bfloat16()).dtype == torch.bfloat16


def test_nothing_is_kept_of_other_tensors():
    """FSDP2 gathers weights into a tensor whose storage and version are the same at each step."""
    w, gathered = weight(), weight()
    derived = Derived([w])
    assert derived.get([gathered], "key", lambda: 1) == 1
    gathered.data.add_(1)
    assert derived.get([gathered], "key", lambda: 2) == 2


def test_what_inference_mode_made_is_not_used_in_training():
    w = weight()
    derived = Derived([w])
    with torch.inference_mode():
        assert derived.get([w], "key", lambda: w * 2).is_inference()
    assert not derived.get([w], "key", lambda: w * 2).is_inference()
    with torch.inference_mode():
        made_there = torch.ones(3)
    derived = Derived([made_there])
    assert derived.get([made_there], 0, lambda: 1) == 1
    assert derived.get([made_there], 0, lambda: 2) == 2


def test_a_copy_follows_its_own_weights():
    module = torch.nn.Linear(2, 2)
    module.derived = Derived([module.weight])
    module.derived.get([module.weight], 0, lambda: module.weight * 2)
    twin = copy.deepcopy(module)
    in_place(twin.weight)
    found = twin.derived.get([twin.weight], 0, lambda: twin.weight * 2)
    torch.testing.assert_close(found, twin.weight.detach() * 2)
    kept = twin.derived.get([twin.weight], 0, lambda: 1 / 0)
    assert kept is found
