"""Records a decoding step, so that a GPU repeats it without Python.

A step runs about thirty small kernels per layer, and Python takes longer to launch them than the GPU to run
them. A CUDA graph launches all of them at once, on the memory that they used while they were recorded. A
recording is compared with the plain step before it is used: PyTorch cannot tell whether a base's code
reads memory that has moved since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch

from fintune.errors import first_line

Step: TypeAlias = "Callable[[], torch.Tensor]"
"""Reads and writes tensors in place, the same ones in each call, and returns logits."""
Recorder: TypeAlias = "Callable[[Step], Step]"
"""Makes a step's recording."""

PLAIN_STEPS = 4
"""A step is recorded after so many: recording costs about two, which short answers do not earn back."""
FAR = 1e-2
"""The relative difference between a recording's logits and the step's from which it is no longer rounding."""

failures: list[str] = []
"""Why nothing is recorded any more in this process."""
_log = logging.getLogger(__name__)


def recorder(device: torch.device) -> Recorder | None:
    """What records steps on this device; None if nothing does, or if it has failed in this process."""
    return cuda_graph if device.type == "cuda" and not failures else None


def cuda_graph(step: Step) -> Step:
    """The step as a CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # libraries set up on a stream's first use, which cannot be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may allocate
        logits = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return logits.clone()  # the next replay overwrites them

    return replay


class Repeated:
    """A step that is recorded once it has run `PLAIN_STEPS` times."""

    def __init__(self, step: Step, record: Recorder | None) -> None:
        self._step, self._record = step, record
        self._recording: Step | None = None
        self._times = 0

    def __call__(self) -> torch.Tensor:
        if self._recording:
            return self._recording()
        logits = self._step()
        self._times += 1
        if self._record and self._times == PLAIN_STEPS and not failures:
            self._recording = self._checked(self._record, logits)
        return logits

    def forget(self) -> None:
        """Drop the recording: the step's tensors will be others."""
        self._recording, self._times = None, 0

    def _checked(self, record: Recorder, wanted: torch.Tensor) -> Step | None:
        """A recording that gives the wanted logits; None if there is none, from then on in this process."""
        try:
            recording = record(self._step)
            far = float((recording().float() - wanted.float()).norm() / wanted.float().norm())
        except RuntimeError as error:  # among them PyTorch's errors of CUDA and of its compiler
            problem = first_line(error)
        else:
            if far < FAR:
                return recording
            problem = f"a recorded step's logits differ from the plain one's by {far:.1%}"
        failures.append(problem)
        _log.warning("Steps of writing cannot be recorded here, so each is launched anew: %s", problem)
        return None
