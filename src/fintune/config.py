"""The one schema of a run: YAML in, a typed and validated `Recipe` out.

Knows nothing of torch, data or models, so that a bad recipe is refused at once.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fintune.errors import ConfigError

BUILT_IN_TASKS = ("sentiment", "headline", "summarization", "qa", "regression")


def _number(value: Any) -> Any:
    """Accept `3e-4`, which YAML 1.1 reads as a string, as the number it plainly is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class BaseModelConfig(_Section):
    """Which causal LM is adapted, and whether its frozen weights are quantized."""

    name: str = "smollm2-135m-instruct"
    """A hub id, a local folder, a GGUF file, or `smollm2-135m-instruct`, the embedded default."""
    revision: str | None = None
    """The hub revision (commit, tag or branch); None is the hub's default branch."""
    load_in_8bit: bool = False
    """Load the frozen weights as int8 through bitsandbytes (Dettmers et al., 2022)."""
    load_in_4bit: bool = False
    """Load the frozen weights as NF4 through bitsandbytes: QLoRA (Dettmers et al., 2023)."""

    @model_validator(mode="after")
    def _one_quantization(self) -> BaseModelConfig:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit exclude each other: keep one of them")
        return self


class LoraConfig(_Section):
    """The adapter (Hu et al., 2021): W + (lora_alpha / r) · B·A on each of `target_modules`."""

    r: int = Field(16, gt=0)
    lora_alpha: Number = Field(32, gt=0)
    target_modules: list[str] = Field(
        default=["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    lora_dropout: Number = Field(0.1, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al., 2024)."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r instead of lora_alpha / r (Kalajdzievski, 2023)."""


class TrainingConfig(_Section):
    """The optimization; names and meanings are those of `transformers.TrainingArguments`."""

    num_train_epochs: Number = Field(3, gt=0)
    per_device_train_batch_size: int = Field(4, gt=0)
    gradient_accumulation_steps: int = Field(16, gt=0)
    learning_rate: Number = Field(3e-4, gt=0)
    weight_decay: Number = Field(0.01, ge=0)
    warmup_steps: int = Field(100, ge=0)
    fp16: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    max_grad_norm: Number = Field(1.0, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    dataloader_num_workers: int = Field(0, ge=0)
    torch_compile: bool = False
    seed: int = Field(42, ge=0)
    max_length: int = Field(1024, gt=0)
    """Tokens of prompt and completion together."""

    @model_validator(mode="before")
    @classmethod
    def _batch_size_alias(cls, values: Any) -> Any:
        """`batch_size` is the guide's short name of `per_device_train_batch_size`."""
        if isinstance(values, dict) and "batch_size" in values:
            if "per_device_train_batch_size" in values:
                raise ValueError(
                    "batch_size and per_device_train_batch_size are one setting: keep one of them"
                )
            values = dict(values)
            values["per_device_train_batch_size"] = values.pop("batch_size")
        return values

    @model_validator(mode="after")
    def _one_precision(self) -> TrainingConfig:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 exclude each other: keep one of them")
        return self


class MultiTaskConfig(_Section):
    """How the tasks are mixed and how much each counts in the loss."""

    task_weights: dict[str, Annotated[Number, Field(ge=0)]] = Field(
        default_factory=lambda: {name: 1.0 for name in BUILT_IN_TASKS}, min_length=1
    )
    sampling_strategy: Literal["balanced", "proportional", "weighted", "temperature"] = "balanced"


class CustomTaskConfig(_Section):
    """A task defined in YAML alone."""

    name: str = Field(min_length=1)
    type: Literal["classification", "qa", "summarization", "regression"]
    instruction: str = Field(min_length=1)
    labels: list[str] = []

    @model_validator(mode="after")
    def _labels_fit_type(self) -> CustomTaskConfig:
        if self.type == "classification" and len(set(self.labels)) < 2:
            raise ValueError(f"labels must hold at least two different labels, got {self.labels}")
        if self.type != "classification" and self.labels:
            raise ValueError(f"labels belong to a classification task; this one's type is {self.type}")
        return self


class Recipe(_Section):
    """Everything a user may vary in a run."""

    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig)
    lora_config: LoraConfig = Field(default_factory=LoraConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    multi_task: MultiTaskConfig = Field(default_factory=MultiTaskConfig)
    custom_task: CustomTaskConfig | None = None

    @model_validator(mode="after")
    def _weights_name_tasks(self) -> Recipe:
        known = [*BUILT_IN_TASKS, *([self.custom_task.name] if self.custom_task else [])]
        for name in self.multi_task.task_weights:
            if name not in known:
                raise ValueError(
                    f"multi_task.task_weights names the unknown task '{name}'{_hint(name, known)}"
                )
        return self


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or empty or no YAML mapping, or a key or value is not valid;
            the message names the file, the key, the value and the nearest valid key.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe at {path}: give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds a {type(raw).__name__}, not sections of settings"
        raise ConfigError(f"{path} {what}: write sections such as `training:` with keys under them.")
    for override in overrides or []:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, path) for item in error.errors())) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, such as training.seed=1.")
    *sections, last = key.strip().split(".")
    node = raw
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section of settings.")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value {text!r} is not valid YAML.") from None


def _hint(wrong: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(wrong, valid, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; valid are: {', '.join(valid)}"


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section that holds the last key of `location`."""
    model: Any = Recipe
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        model = CustomTaskConfig if part == "custom_task" else annotation
    return [*model.model_fields, *(["batch_size"] if model is TrainingConfig else [])]


def _sentence(item: Any, path: Path) -> str:
    location, value = item["loc"], item["input"]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        return f"{key} is not a known key{_hint(str(location[-1]), _valid_keys(location))} (in {path})"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{message} (in {path})"
    if item["type"] == "missing":
        return f"{key} is missing (in {path})"
    limit = message.removeprefix("Input should be ").replace("greater than or equal to", ">=")
    limit = limit.replace("greater than", ">").replace("less than", "<")
    return f"{key} must be {limit}, got {value!r} (in {path})"
