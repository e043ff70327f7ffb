"""Shows a run's progress: the progress bar, the log file, the trackers."""

from __future__ import annotations

import importlib.util
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers

from fintune.errors import MissingExtraError
from fintune.progress import progress_bar

logger = logging.getLogger("fintune.train")


_ONLY_IN_THE_LOG = ("grad_norm", "plain_tokens_per_second", "sharing", "padding", "utilisation")


class Progress(transformers.TrainerCallback):
    """A bar with loss, speed and time left; one line per validation."""

    def __init__(self, say: Any, bar: bool = True) -> None:
        self.say = say
        self.show_bar = bar
        self.bar: Any = None
        self.shown = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show_bar = self.show_bar and state.is_world_process_zero
        self.bar = progress_bar(
            self.show_bar,
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)
        self.bar.set_postfix_str(self.shown, refresh=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        if "tokens_per_second" in logs:
            self.shown = (
                f"loss {logs['loss']:.3f}, {logs['examples_per_second']:.1f} examples/s, "
                f"{logs['tokens_per_second']:.0f} tokens/s, {logs['utilisation']:.0%} of the matrix peak"
            )
        line = f"step {state.global_step}/{state.max_steps}, epoch {state.epoch:.2f}"
        shown = {k: v for k, v in logs.items() if k != "epoch" and isinstance(v, float | int)}
        logger.info("%s: %s", line, " ".join(f"{k}={v:.4g}" for k, v in shown.items()))
        validating = any(key.startswith("eval_") for key in shown)
        if validating or self.bar.disable:
            losses = {k.removeprefix("eval_"): v for k, v in shown.items() if k not in _ONLY_IN_THE_LOG}
            text = "  ".join(f"{k} {v:.3g}" for k, v in losses.items())
            self.write(f"{'validation, ' if validating else ''}{line}:  {text}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()

    def write(self, text: str) -> None:
        """Write a line above the bar; a custom `say` gets it as an ordinary line."""
        if self.say is print and self.bar is not None and not self.bar.disable:
            self.bar.write(text)
        else:
            self.say(text)


def log_to_file(folder: str | Path = "logs", verbose: bool = False) -> Path:
    """Log fintune's messages, and errors of Transformers and PEFT, to a new file; return its path.

    With `verbose` debugging details are logged too, and also go to the console.
    """
    folder = Path(folder)
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
