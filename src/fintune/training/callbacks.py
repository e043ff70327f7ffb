"""Shows a run's progress: the progress bar, the log file, the trackers."""

from __future__ import annotations

import importlib.util
import logging
import os
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers

from fintune.errors import MissingExtraError
from fintune.progress import duration, progress_bar, sparkline
from fintune.tasks import TaskSet

logger = logging.getLogger("fintune.train")


class Progress(transformers.TrainerCallback):
    """Steps done, loss, speed and time left: a bar on a terminal, lines elsewhere; and each validation's
    figures by task."""

    def __init__(self, say: Any, tasks: TaskSet, bar: bool = True) -> None:
        self.say = say
        self.tasks = tasks
        self.show_bar = bar
        self.bar: Any = None
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        self.show_bar = self.show_bar and state.is_world_process_zero
        self.bar = progress_bar(
            self.show_bar,
            total=state.max_steps,
            initial=state.global_step,
            bar_format="{n_fmt}/{total_fmt} steps {bar} {desc}{remaining} left",
            dynamic_ncols=True,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        figures = {k: v for k, v in logs.items() if k != "epoch" and isinstance(v, float | int)}
        at = f"step {state.global_step}/{state.max_steps}"
        text = " ".join(f"{k}={v:.4g}" for k, v in figures.items())
        logger.info("%s, epoch %.2f: %s", at, state.epoch, text)
        if any(key.startswith("eval_") for key in figures):
            for line in self._validated(at, figures):
                self.write(line)
        elif "loss" in figures:
            rate = (
                f"{figures['examples_per_second']:.1f} examples/s" if "examples_per_second" in figures else ""
            )
            if self.bar.disable:
                done = state.global_step - self.first
                left = (time.monotonic() - self.began) / max(done, 1) * (state.max_steps - state.global_step)
                parts = (f"training loss {figures['loss']:.3f}", rate, f"{duration(left)} left")
                share = state.global_step / state.max_steps
                self.write(f"{at} ({share:.0%}): {', '.join(filter(None, parts))}")
            else:
                loss = f"loss {sparkline(_losses(state))} {figures['loss']:.3f}"
                self.bar.set_description_str(
                    "".join(f"{part}, " for part in (loss, rate) if part), refresh=False
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
        losses = _losses(state)
        if len(losses) > 1 and state.is_world_process_zero:
            first, last = losses[0], losses[-1]
            self.say(
                f"Training loss, lower is better: {sparkline(losses, 24)} from {first:.3f} to {last:.3f}"
            )

    def _validated(self, at: str, figures: dict[str, float]) -> list[str]:
        """Lines on a validation: the losses and, if answers were computed, each task's metrics."""
        losses: list[str] = []
        answers: dict[str, list[str]] = {}
        for key, value in figures.items():
            if task := max(
                (name for name in self.tasks.names() if key.startswith(f"eval_{name}_")), default="", key=len
            ):
                name = key.removeprefix(f"eval_{task}_")
                if name == "loss":
                    losses.append(f"{task} {value:.3f}")
                    continue
                measure = next((m for m in self.tasks[task].measures if m.name == name), None)
                title = measure.title + (" ↓" if measure.better == "lower" else "") if measure else name
                answers.setdefault(task, []).append(f"{title} {value:.3f}")
        lines = []
        if "eval_loss" in figures:
            lines.append(
                f"Validation loss at {at}, lower is better: {figures['eval_loss']:.3f} ({', '.join(losses)})"
            )
        if answers:
            lines.append(f"Validation answers at {at}, higher is better, but lower with ↓:")
        lines += [f"  {task + ':':15} {'  '.join(found)}" for task, found in answers.items()]
        return [textwrap.fill(line, 80, subsequent_indent=" " * 4, break_on_hyphens=False) for line in lines]

    def write(self, text: str) -> None:
        """Write a line above the bar; a custom `say` gets it as an ordinary line."""
        if self.say is print and self.bar is not None and not self.bar.disable:
            self.bar.write(text)
        else:
            self.say(text)


def _losses(state: Any) -> list[float]:
    """The training loss of each log, including the runs before a checkpoint."""
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


def log_to_file(verbose: bool) -> Path:
    """Log fintune's messages, and errors of Transformers and PEFT, to a new file in `logs`; return its path.

    With `verbose` debugging details are logged too, and also go to the console.
    """
    folder = Path("logs")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("fintune", "transformers", "peft"):
        library = logging.getLogger(name)
        for earlier in [h for h in library.handlers if isinstance(h, logging.FileHandler)]:
            library.removeHandler(earlier)  # of a run before this one in the same process
            earlier.close()
        library.addHandler(handler)
    logging.getLogger("fintune").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        for console in logging.getLogger().handlers:
            console.setLevel(logging.DEBUG)
    return path


def tensorboard(output_dir: Path) -> list[transformers.TrainerCallback]:
    """Curves in `output_dir/tensorboard`, if TensorBoard is installed."""
    if not importlib.util.find_spec("tensorboard"):
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(output_dir / "tensorboard")))]


def wandb() -> list[str]:
    """The name for `TrainingArguments.report_to`; without credentials W&B logs offline.

    Raises:
        MissingExtraError: W&B is not installed.
    """
    if not importlib.util.find_spec("wandb"):
        raise MissingExtraError("--use_wandb", "track")
    os.environ.setdefault("WANDB_PROJECT", "fintune")
    if not _wandb_login() and "WANDB_MODE" not in os.environ:
        os.environ["WANDB_MODE"] = "offline"
    return ["wandb"]


def _wandb_login() -> bool:
    """Whether W&B has credentials: the variable, or the netrc entry that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
