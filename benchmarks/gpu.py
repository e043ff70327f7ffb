"""One GPU in minutes: exact, and how fast, beside TRL: bases of 0.13 to 8 B in bf16, 4 and 8 bit.

    PYTHONPATH=src python benchmarks/gpu.py [--minutes 6] [--json PATH] [--only TEXT …] [--tiny]

No network: weights are random in the shape of Llama, but for the check, which takes the real SmolLM2 where
it is installed. First the loss and the gradients of a packed five-task mix are held against separate
sequences, on the card. Then come training cells in steps of 128 headlines (LoRA r = 16 on all seven
projections, no dropout), the most telling first; full rows of 4,096 tokens at 8 B; labels and written texts
at 6.7 B.

Each job is a process of its own, and each cell builds its model anew, so that no patch of one is in another.
The JSON is written again after every cell: a run that is cut still tells. A cell that does not fit into the
time, or whose packages are not there, says so. Of fintune's cells in bf16 a profile of one step lies beside
the JSON. `--tiny` runs every path on a CPU with tiny shapes.

Speeds are medians of windows of steps after a warm-up. `share` is the FLOPs that the computed tokens need
(`fintune.training.throughput.FlopCount`) by the measured matrix peak; of TRL those of its unpadded tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness import arguments, fintune_trainer, records
from scaling import BASES

SHAPES: dict[str, dict[str, int]] = {
    **BASES,
    "8": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""`scaling.BASES`, and Llama-3-8B."""
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VOCABULARY = {"8": 128_256}
STEP, ROW = 128, 4096
"""Examples of an optimizer step; tokens of a full row."""
HEADLINES, NEW_TOKENS = 2388, 64
"""Twitter Financial News's test set; tokens of a text that is written."""
WARM, WINDOW = 3, 3
"""Steps before the clock starts, and between two looks at it."""
TIMED = 8.0
"""Seconds of a cell's timed steps."""
STARTS, CELL = 40.0, 35.0
"""Seconds that a job is given to start, and for each cell."""
TRL: dict[str, dict[str, Any]] = {
    "trl_default": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16, "max_length": 1024},
    "trl_liger_packed": {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "packing": True,
        "use_liger_kernel": True,
        "gradient_checkpointing": False,
        "max_length": ROW,
    },
    "trl_padding_free": {
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 2,
        "padding_free": True,
        "gradient_checkpointing": False,
        "max_length": None,
    },
}
"""Settings of SFTTrainer; a step sees about 128 headlines in each."""
NEEDS = {
    "trl_default": ("trl",),
    "trl_liger_packed": ("trl", "liger_kernel"),
    "trl_padding_free": ("trl", "flash_attn"),
    "vllm": ("vllm",),
}
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BF16, FOUR, EIGHT = "bf16", "4 bit", "8 bit"
JOBS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("0.13", "check", (BF16, "fp32")),
    ("6.7", BF16, ("fintune", "trl_liger_packed")),
    ("6.7", FOUR, ("fintune",)),
    ("1.1", BF16, ("fintune", "trl_liger_packed")),
    ("1.1", BF16, ("fintune_compiled",)),
    ("6.7", EIGHT, ("fintune",)),
    ("6.7", BF16, ("fintune_compiled",)),
    ("8", BF16, ("full_rows",)),
    ("6.7", BF16, ("labels", "texts", "trl_default", "trl_padding_free")),
    ("1.1", BF16, ("trl_default", "trl_padding_free")),
    ("6.7", FOUR, ("trl_default", "trl_padding_free", "trl_liger_packed")),
    ("6.7", BF16, ("vllm",)),
    ("6.7", EIGHT, ("trl_default", "trl_padding_free", "trl_liger_packed")),
    *((base, p, ("fintune", *TRL)) for base in ("1.1", "0.13") for p in (FOUR, EIGHT)),
    ("0.13", BF16, ("fintune", *TRL)),
)
"""(base, precision, cells): a process each, the most telling first. Layers stay compiled to a job's end. A
cell with Liger's kernels, which patch Transformers' modules, is its job's last, and so is the padding-free
one before it."""


def key(base: str, precision: str, cell: str) -> str:
    return f"{base} B, {precision}, {cell}" if precision != "check" else f"check, {cell}"


# What a job's process does ------------------------------------------------------------------------------


@dataclass
class Job:
    base: str
    precision: str
    deadline: float
    tiny: bool
    profiles: str
    data_dir: str | None
    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> Any:
        import torch

        from fintune.config import TrainingConfig
        from fintune.models.base import choose_precision

        return torch.bfloat16 if torch.cuda.is_available() else choose_precision(TrainingConfig()).dtype

    def model(self) -> Any:
        """The base with random weights, frozen."""
        from transformers import LlamaConfig

        from fintune.config import BaseModelConfig
        from fintune.models.base import random_base_model

        config = LlamaConfig(
            vocab_size=VOCABULARY.get(self.base, 49_152),
            max_position_embeddings=8192,
            tie_word_embeddings=self.base not in VOCABULARY,
            **(TINY if self.tiny else SHAPES[self.base]),
        )
        quantized = BaseModelConfig(load_in_4bit=self.precision == FOUR, load_in_8bit=self.precision == EIGHT)
        model = random_base_model(config, quantized, self.dtype)
        _tidy()
        return model

    def tuned(self) -> Any:
        """The base with a new adapter."""
        from fintune.models.adapters import add_adapter

        return add_adapter(self.model(), self.lora)

    @property
    def lora(self) -> Any:
        from fintune.config import LoraConfig

        return LoraConfig(lora_dropout=0.0)

    def data(self, workload: str, count: int) -> tuple[Any, Any, list[Any], list[Any], str]:
        """Tokenizer, tasks, records, tokenized examples, and what the texts are."""
        from fintune.prompts import PromptTemplate

        if workload not in self._kept:
            tasks, pairs, told = records(workload, count, self.data_dir)
            tokenizer, whose = _tokenizer([record.text for _, record in pairs])
            template = PromptTemplate(tokenizer, 1024)
            made: dict[int, Any] = {}
            for name, record in pairs:
                if id(record) not in made:
                    made[id(record)] = template.example(tasks[name], record)
            examples = [made[id(record)] for _, record in pairs]
            texts = [record for _, record in pairs]
            self._kept[workload] = tokenizer, tasks, texts, examples, f"{told}, tokens by {whose}"
        return self._kept[workload]  # type: ignore[no-any-return]

    @property
    def step(self) -> int:
        return 8 if self.tiny else STEP

    def headlines(self) -> tuple[Any, Any, list[Any], list[Any], str]:
        return self.data("tfns", self.step * (10 if self.tiny else 60))


def _tidy() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _tokenizer(texts: list[str]) -> tuple[Any, str]:
    """SmolLM2's, or where it is not installed one that is trained on these texts, with its chat template."""
    from fintune.errors import ModelError
    from fintune.models.base import EMBEDDED, load_tokenizer

    with contextlib.suppress(ModelError):
        return load_tokenizer(EMBEDDED), "SmolLM2's tokenizer"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=16_384, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[1], eos_token=special[2], pad_token=special[2]
    )
    tokenizer.chat_template = CHAT
    return tokenizer, "a tokenizer trained on them, as SmolLM2 is not installed"


class Timer:
    """Times a training in windows of steps, stops it after `TIMED` seconds, and profiles one step more.

    Args:
        job: whose deadline it keeps.
        profile: the file of a profile; None makes none.
    """

    def __init__(self, job: Job, profile: Path | None = None) -> None:
        self.job, self.profile = job, profile
        self.steps = 0
        self.first = 0.0
        self.windows: list[float] = []
        self.counts: dict[str, int] = {}
        self._begun = self._stamp = self._started = 0.0
        self._profiler: Any = None

    @property
    def seconds(self) -> float:
        """Of a step: the middle one of the windows."""
        if not self.windows:
            raise RuntimeError(f"only {self.steps} steps were done in the time there was")
        return statistics.median(self.windows)

    def _done(self, now: float) -> bool:
        timed = 0.0 if self.job.tiny else TIMED
        return bool(self.windows) and (now - self._started >= timed or time.time() > self.job.deadline - 8)

    def callback(self) -> Any:
        import torch
        import transformers

        timer, cuda = self, torch.cuda.is_available()

        def now() -> float:
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        class Callback(transformers.TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                timer._begun = now()

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if timer.profile and timer._done(time.perf_counter()):
                    kinds = [torch.profiler.ProfilerActivity.CPU]
                    kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
                    now()
                    timer._profiler = torch.profiler.profile(activities=kinds)
                    timer._profiler.__enter__()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                timer.steps += 1
                if timer._profiler:
                    now()
                    timer._profiler.__exit__(None, None, None)
                    timer.counts = _profiled(timer._profiler, timer.profile, cuda)
                    control.should_training_stop = True
                elif timer.steps == 1:
                    timer.first = now() - timer._begun
                elif timer.steps == WARM:
                    timer._started = timer._stamp = now()
                elif timer.steps > WARM and (timer.steps - WARM) % WINDOW == 0:
                    stamp = now()
                    timer.windows.append((stamp - timer._stamp) / WINDOW)
                    timer._stamp = stamp
                    control.should_training_stop |= not timer.profile and timer._done(stamp)
                if time.time() > timer.job.deadline - 4:
                    control.should_training_stop = True

        return Callback()


def _profiled(profiler: Any, path: Path | None, cuda: bool) -> dict[str, int]:
    """Write the table of a profiled step; count its launches, synchronizations, copies and main operators."""
    events = profiler.key_averages()
    counted = {event.key: event.count for event in events}

    def total(*names: str) -> int:
        return sum(count for name, count in counted.items() if name.startswith(names))

    counts = {
        "launches": total("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"),
        "synchronizations": total("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
        "copies_to_device": total("Memcpy HtoD"),
        "copies_to_host": total("Memcpy DtoH"),
        "aten_mm": counted.get("aten::mm", 0),
        "aten_mul": counted.get("aten::mul", 0),
        "aten_copy_": counted.get("aten::copy_", 0),
    }
    counts["synchronizations"] -= bool(cuda)  # the profile's own at its end
    if path:
        table = events.table(sort_by=f"self_{'cuda' if cuda else 'cpu'}_time_total", row_limit=30)
        path.write_text(f"one step: {json.dumps(counts)}\n{table}\n", encoding="utf-8")
    return counts


def _figures(
    timer: Timer, model: Any, examples: float, tokens: float, targets: float, told: str
) -> dict[str, Any]:
    """A training cell's result; examples, tokens and targets are of a step."""
    from fintune.provenance import peak_memory
    from fintune.training.throughput import FlopCount, matrix_peak

    return {
        "examples_per_second": examples / timer.seconds,
        "tokens_per_second": tokens / timer.seconds,
        "seconds_per_step": timer.seconds,
        "examples_per_step": examples,
        "tokens_per_step": tokens,
        "share": FlopCount(model)(tokens, targets) / timer.seconds / matrix_peak(),
        "peak_memory_gib": peak_memory() / 2**30,
        "first_step_seconds": timer.first,
        "steps": timer.steps,
        "data": told,
        **timer.counts,
    }


def _trained(
    job: Job,
    examples: list[Any],
    told: str,
    step: int,
    profile: Path | None = None,
    compile_layers: bool = False,
) -> dict[str, Any]:
    """fintune's trainer on these examples."""
    from fintune.kernels import compiled

    tokenizer, tasks, _, _, _ = job.headlines()
    model, timer = job.tuned(), Timer(job, profile)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fintune_trainer(
            model, tokenizer, tasks, examples, arguments(folder), timer, step, row_tokens=ROW
        )
        if compile_layers:
            compiled.enable(model, "eager" if job.tiny else "inductor")
        trainer.train()
    done = {name: value / timer.steps for name, value in trainer.meter.totals.items()}
    figures = _figures(timer, model, done["examples"], done["tokens"], done["targets"], told)
    return {**figures, "plain_tokens_per_second": done["plain_tokens"] / timer.seconds}


def fintune(job: Job, cell: str) -> dict[str, Any]:
    *_, examples, told = job.headlines()
    profile = Path(f"{job.profiles}profile-{job.base}b.txt") if job.precision == BF16 else None
    return _trained(job, examples, told, job.step, profile)


def fintune_compiled(job: Job, cell: str) -> dict[str, Any]:
    """The same with `training.torch_compile`."""
    *_, examples, told = job.headlines()
    return _trained(job, examples, told, job.step, compile_layers=True)


def full_rows(job: Job, cell: str) -> dict[str, Any]:
    """Rows of 4,096 tokens that share nothing, all but the first of them targets."""
    from fintune.prompts import TokenizedExample

    draw, length, rows = random.Random(0), 64 if job.tiny else ROW, 1 if job.tiny else 4
    vocabulary = VOCABULARY.get(job.base, 49_152)
    examples = []
    for _ in range(rows * (10 if job.tiny else 60)):
        ids = [draw.randrange(vocabulary) for _ in range(length + 1)]
        examples.append(TokenizedExample(ids[:1], ids[1:], "headline"))
    return _trained(job, examples, f"random tokens in rows of {length}", rows)


def trl(job: Job, cell: str) -> dict[str, Any]:
    """TRL's SFTTrainer on the same token ids."""
    import datasets
    from datasets import fingerprint
    from trl import SFTConfig, SFTTrainer

    from fintune.models.adapters import peft_config

    # A cache's fingerprints need what some versions of pyarrow cannot pickle; nothing is cached here.
    fingerprint.Hasher.hash = classmethod(lambda cls, value: f"{random.getrandbits(64):x}")
    fingerprint.Hasher.update = lambda self, value: None
    fingerprint.Hasher.hexdigest = lambda self: f"{random.getrandbits(64):x}"
    tokenizer, _, _, examples, told = job.headlines()
    rows = [
        {
            "input_ids": [*e.prompt_ids, *e.completion_ids],
            "completion_mask": [0] * len(e.prompt_ids) + [1] * len(e.completion_ids),
        }
        for e in examples
    ]
    model, timer = job.model(), Timer(job)
    if "flash_attn" in NEEDS[cell]:
        model.set_attn_implementation("flash_attention_2")
    settings = dict(TRL[cell])
    if job.tiny:
        settings |= {"gradient_accumulation_steps": 1}
        settings |= {"max_length": 256} if settings.get("packing") else {"per_device_train_batch_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments(folder),
                **settings,
                completion_only_loss=True,
                num_train_epochs=1,
                dataset_num_proc=None,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config(job.lora),
        )
        trainer.add_callback(timer.callback())
        trainer.train()
        taken = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        columns = trainer.train_dataset.column_names
    if "seq_lengths" in columns:  # a packed row holds several
        taken *= len(examples) / len(trainer.train_dataset)
    tokens = statistics.mean(len(row["input_ids"]) for row in rows) * taken
    targets = statistics.mean(sum(row["completion_mask"]) for row in rows) * taken
    return _figures(timer, trainer.model, taken, tokens, targets, told)


def _engine(job: Job) -> tuple[Any, list[Any], list[list[int]], str]:
    from fintune.inference.engine import Engine

    tokenizer, tasks, texts, examples, told = job.headlines()
    engine = Engine(job.tuned().eval(), tokenizer, tasks, 1024, "random weights", keep_prefixes=True)
    return engine, texts, [example.prompt_ids for example in examples], told


def _timed(work: Any) -> float:
    import torch

    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def labels(job: Job, cell: str) -> dict[str, Any]:
    """Labels of as many headlines as Twitter's test set has."""
    from fintune.provenance import peak_memory

    engine, texts, _, told = _engine(job)
    wanted, size = (16, 8) if job.tiny else (HEADLINES, 512)
    texts = [texts[i % len(texts)] for i in range(wanted)]
    first = _timed(lambda: engine.predict("headline", texts[:size], batch_size=size))
    seconds = _timed(lambda: engine.predict("headline", texts, batch_size=size))
    return {
        "examples_per_second": wanted / seconds,
        "first_call_seconds": first,
        "peak_memory_gib": peak_memory() / 2**30,
        "data": told,
    }


def texts(job: Job, cell: str) -> dict[str, Any]:
    """Texts of 64 tokens each, written together: with recorded steps, and with each launched anew."""
    from fintune.inference import recording
    from fintune.provenance import peak_memory

    engine, _, prompts, told = _engine(job)
    many, new = (2, 4) if job.tiny else (64, NEW_TOKENS)
    written: list[list[list[int]]] = []

    def write() -> None:
        with engine.backend.session():
            found = engine.backend.generate(prompts[:many], new, (), None)  # no token ends a text
        written.append([each.ids for each in found])

    first = _timed(write)
    seconds = _timed(write)
    with patch.object(recording, "recorder", lambda device: None):
        plain_seconds = _timed(write)
    return {
        "tokens_per_second": many * new / seconds,
        "tokens_per_second_plain": many * new / plain_seconds,
        "same_texts": written[1] == written[2],
        "not_recorded": "; ".join(recording.failures) or None,
        "texts_together": many,
        "first_call_seconds": first,
        "peak_memory_gib": peak_memory() / 2**30,
        "data": told,
    }


def vllm(job: Job, cell: str) -> dict[str, Any]:
    """vLLM on the same prompts: one token each, which a label needs at least; and texts of 64 tokens."""
    from transformers import LlamaConfig
    from vllm import LLM, SamplingParams

    tokenizer, _, _, examples, told = job.headlines()
    config = LlamaConfig(
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        **SHAPES[job.base],
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = LLM(
            model=folder,
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=2048,
            enable_prefix_caching=True,
        )

        def write(many: int, new: int) -> float:
            prompts = [{"prompt_token_ids": examples[i % len(examples)].prompt_ids} for i in range(many)]
            wanted = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
            return _timed(lambda: model.generate(prompts, wanted, use_tqdm=False))

        write(64, 2)
        one, many = write(HEADLINES, 1), write(64, NEW_TOKENS)
    return {"examples_per_second": HEADLINES / one, "tokens_per_second": 64 * NEW_TOKENS / many, "data": told}


def check(job: Job, cell: str) -> dict[str, Any]:
    """Loss and gradients of a packed five-task mix beside those of each sequence alone, in PEFT's layers."""
    import torch
    from torch.nn.functional import cross_entropy

    from fintune.config import BaseModelConfig
    from fintune.errors import ModelError
    from fintune.models.adapters import add_adapter, mixed_precision
    from fintune.models.base import load_base_model

    dtype = torch.float32 if cell == "fp32" else torch.bfloat16
    tokenizer, tasks, _, examples, told = job.data("mix", 8 if job.tiny else 40)
    whose = "random weights"
    if job.tiny:
        model = job.tuned().to(dtype)
    else:
        try:
            model = add_adapter(load_base_model(BaseModelConfig(), dtype), job.lora)
            whose = "SmolLM2-135M"
        except ModelError:
            model = job.tuned().to(dtype)
    torch.manual_seed(0)
    adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in adapter.items():
        parameter.data = parameter.data.float()
        if "lora_B" in name:  # which is zero in a new adapter, and with it the gradient of A
            parameter.data.normal_(std=0.02)
    model.train()
    loss = 0.0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]], device=model.device)
        begins = len(example.prompt_ids)
        with mixed_precision(model):
            logits = model(input_ids=ids).logits[0, begins - 1 : -1].float()
        own = cross_entropy(logits, ids[0, begins:]) / len(examples)
        own.backward()
        loss += float(own.detach())
    plain = torch.cat([p.grad.flatten().float() for p in adapter.values()])
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        common = {**arguments(folder), "bf16": cell == "bf16"}
        clock = Timer(job)
        trainer = fintune_trainer(model, tokenizer, tasks, examples, common, clock, len(examples))
        step = next(iter(trainer.get_train_dataloader()))
        packed_loss = float(trainer.training_step(model, step))
    packed = torch.cat([p.grad.flatten().float() for p in adapter.values()])
    error = float((packed - plain).norm() / plain.norm())
    bound = 1e-3 if cell == "fp32" else 0.05
    return {
        "loss": packed_loss,
        "loss_plain": loss,
        "gradient_error": error,
        "exact": error < bound and abs(packed_loss - loss) < bound * max(1.0, abs(loss)),
        "examples": len(examples),
        "data": f"{told}; {whose}",
    }


CELLS = {
    "fintune": fintune,
    "fintune_compiled": fintune_compiled,
    "full_rows": full_rows,
    "labels": labels,
    "texts": texts,
    "vllm": vllm,
}


def measure(job: Job, cells: list[str], send: Any) -> None:
    """Compute the cells one after the other; what fails is a cell that says why."""
    import torch

    torch.manual_seed(0)
    for cell in cells:
        missing = [name for name in NEEDS.get(cell, ()) if importlib.util.find_spec(name) is None]
        run = check if job.precision == "check" else CELLS.get(cell, trl)
        if missing:
            result: dict[str, Any] = {"not_run": f"{' and '.join(missing)} not installed"}
        elif time.time() > job.deadline - (0 if job.tiny else CELL / 2):
            result = {"not_run": "time"}
        else:
            begun = time.perf_counter()
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    result = {**run(job, cell), "cell_seconds": time.perf_counter() - begun}
            except torch.OutOfMemoryError:
                result = {"not_run": "the GPU's memory is too small"}
            except Exception as error:
                traceback.print_exc()
                result = {"not_run": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        send(key(job.base, job.precision, cell), result)
        _tidy()


# What starts the jobs -----------------------------------------------------------------------------------


class Report:
    """What is known so far, as a file that is whole after each cell."""

    def __init__(self, path: str | None, minutes: float, tiny: bool) -> None:
        self.path = Path(path) if path else None
        self.facts: dict[str, Any] = {"minutes": minutes, "tiny": tiny, "cells": {}}

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.facts["cells"][name] = result
        self.write()
        print(f"{name:36}{_line(result)}", flush=True)

    def write(self) -> None:
        if self.path:
            staging = self.path.with_name(f".{self.path.name}.tmp")
            staging.write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")
            os.replace(staging, self.path)


def _line(result: dict[str, Any]) -> str:
    if "not_run" in result:
        return f"not run: {result['not_run']}"
    if "exact" in result:
        verdict = "exact" if result["exact"] else "WRONG"
        return f"{verdict}: gradients differ by {result['gradient_error']:.1e}, loss {result['loss']:.4f}"
    shown = (
        ("examples_per_second", "{:.1f} examples/s"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("tokens_per_second_plain", "{:,.0f} unrecorded"),
        ("share", "{:.0%} of the peak"),
        ("peak_memory_gib", "{:.1f} GiB"),
        ("first_step_seconds", "first step {:.1f} s"),
        ("launches", "{} launches"),
        ("synchronizations", "{} synchronizations"),
    )
    return ", ".join(text.format(result[name]) for name, text in shown if name in result)


def start(
    jobs: list[tuple[str, str, list[str]]], report: Report, end: float, args: argparse.Namespace
) -> None:
    """Run a process of jobs until they are done or `end`; add its cells to the report as they come."""
    told = json.dumps({"jobs": jobs, "deadline": end})
    command = [sys.executable, __file__, "--measure", told, "--profiles", args.profiles]
    command += ["--tiny"] * args.tiny
    command += ["--data_dir", args.data_dir] if args.data_dir else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    overdue = threading.Timer(max(1.0, end - time.time() + 5), process.kill)
    overdue.start()
    left = [key(base, precision, cell) for base, precision, cells in jobs for cell in cells]
    assert process.stdout
    for line in process.stdout:
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if "facts" in found:
                report.facts |= found["facts"]
            else:
                report.add(found["name"], found["result"])
                left.remove(found["name"])
    code = process.wait()
    overdue.cancel()
    for name in left:
        why = "time" if time.time() > end else f"its process ended with code {code}"
        report.add(name, {"not_run": why})


def compare(report: Report) -> None:
    """The aims beside what was measured, and fintune's speed over the best of TRL's."""
    cells = report.facts["cells"]

    def of(name: str, figure: str) -> float | None:
        return cells.get(name, {}).get(figure)  # type: ignore[no-any-return]

    def over(one: float | None, other: float | None) -> float | None:
        return one / other if one and other else None

    speed = "examples_per_second"
    ratios: dict[str, float | None] = {}
    for base, precision in dict.fromkeys((b, p) for b, p, cs in JOBS if "fintune" in cs):
        found = [of(key(base, precision, name), speed) for name in TRL]
        best = max((value for value in found if value), default=None)
        ratios[f"{base} B, {precision}"] = over(of(key(base, precision, "fintune"), speed), best)
    bf16 = of(key("6.7", BF16, "fintune"), speed)
    aims = [
        ("share of the peak at 6.7 B, bf16", of(key("6.7", BF16, "fintune"), "share"), 0.5),
        ("share of the peak at 1.1 B, bf16", of(key("1.1", BF16, "fintune"), "share"), 0.3),
        ("over the best of TRL at 6.7 B, bf16", ratios[f"6.7 B, {BF16}"], 3.0),
        ("over the best of TRL at 1.1 B, bf16", ratios[f"1.1 B, {BF16}"], 3.0),
        ("4 bit over bf16 at 6.7 B", over(of(key("6.7", FOUR, "fintune"), speed), bf16), 0.7),
        ("8 bit over bf16 at 6.7 B", over(of(key("6.7", EIGHT, "fintune"), speed), bf16), 0.7),
        ("tokens/s in full rows at 8 B", of(key("8", BF16, "full_rows"), "tokens_per_second"), 14_000),
    ]
    memory = of(key("6.7", FOUR, "fintune"), "peak_memory_gib")
    report.facts["ratios_to_best_trl"] = {name: value for name, value in ratios.items() if value}
    verdicts = [
        (name, value, f"≥ {aim:,g}", None if value is None else value >= aim) for name, value, aim in aims
    ]
    verdicts.append(("GiB of 4 bit at 6.7 B", memory, "< 10", None if memory is None else memory < 10))
    report.facts["aims"] = [
        {"aim": name, "value": value, "wanted": wanted, "met": met} for name, value, wanted, met in verdicts
    ]
    report.write()
    if report.facts["tiny"]:
        print("A dry run in tiny shapes: its figures say nothing.")
        return
    print(f"\n{'aim':38}{'measured':>12}{'wanted':>12}")
    for name, value, wanted, met in verdicts:
        shown = "not measured" if value is None else f"{value:,.2f}"
        print(f"{name:38}{shown:>12}{wanted:>12}  {'' if met is None else 'met' if met else 'missed'}")
    for name, value in ratios.items():
        if value:
            print(f"fintune is {value:.2f} × the best of TRL at {name}")


def _child(args: argparse.Namespace) -> None:
    from fintune.provenance import machine, versions
    from fintune.training.throughput import matrix_peak

    told = json.loads(args.measure)
    kept: dict[str, Any] = {}

    def send(name: str, result: dict[str, Any]) -> None:
        print(json.dumps({"name": name, "result": result}), flush=True)

    facts = {"machine": machine(), "versions": versions(), "matrix_peak_flops": matrix_peak()}
    print(json.dumps({"facts": facts}), flush=True)
    for base, precision, cells in told["jobs"]:
        job = Job(base, precision, told["deadline"], args.tiny, args.profiles, args.data_dir, kept)
        measure(job, cells, send)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--minutes", type=float, default=6.0, help="for all of it (default: 6)")
    flags.add_argument("--json", metavar="PATH", help="the results, written again after each cell")
    flags.add_argument(
        "--only", metavar="TEXT", nargs="+", default=[""], help='cells so named, as "6.7 B, 4 bit"'
    )
    flags.add_argument("--tiny", action="store_true", help="a dry run: tiny shapes, on a CPU too")
    flags.add_argument("--data_dir", default=os.environ.get("FINTUNE_DATA_DIR"), help="the public datasets")
    flags.add_argument("--profiles", default="", help=argparse.SUPPRESS)
    flags.add_argument("--measure", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.measure:
        _child(args)
        return
    end = time.time() + 60 * args.minutes
    args.profiles = args.json.removesuffix(".json") + "-" if args.json else "gpu-"
    report = Report(args.json, args.minutes, args.tiny)
    wanted = [
        (b, p, [c for c in cells if any(each in key(b, p, c) for each in args.only)]) for b, p, cells in JOBS
    ]
    jobs = [job for job in wanted if job[2]]
    for group in [jobs] if args.tiny else [[job] for job in jobs]:  # libraries load once in a dry run
        cells = sum(len(cells) for _, _, cells in group)
        if not args.tiny and end - time.time() < STARTS:
            for base, precision, names in group:
                for name in names:
                    report.add(key(base, precision, name), {"not_run": "time"})
            continue
        limit = end if args.tiny else min(end, time.time() + STARTS + CELL * cells)
        start(group, report, limit, args)
    compare(report)


if __name__ == "__main__":
    main()
