"""The recipe schema: every setting of a run with its default, and which settings exclude each other.

Imports no torch, data or models, so that a bad recipe is refused at once; `recipes` reads it from YAML.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from fintune.errors import hint

BUILT_IN_TASKS = ("sentiment", "headline", "summarization", "qa", "regression")


def _number(value: Any) -> Any:
    """Accept `3e-4`, which YAML 1.1 reads as a string, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]

AUTO: Any = "auto"
"""A setting that `training.fit` chooses from the data or the device."""


def _or_auto(value: Any, read: Callable[[Any], Any]) -> Any:
    return AUTO if value == AUTO else read(value)


# Code that reads these gets a fitted recipe, in which they are numbers.
_AS_IT_IS = (WrapValidator(_or_auto), PlainSerializer(lambda value: value))
FittedCount = Annotated[int, Field(gt=0), *_AS_IT_IS]
FittedSteps = Annotated[int, Field(ge=0), *_AS_IT_IS]
FittedEpochs = Annotated[float, BeforeValidator(_number), Field(gt=0), *_AS_IT_IS]


def _label(value: Any) -> Any:
    """A label as text, stripped of outer spaces: YAML reads `0`, `true` and `null` as other types."""
    if value is None:
        raise ValueError("YAML reads null, ~ and an empty value as no label: write it in quotation marks")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float | date) else value


Label = Annotated[str, BeforeValidator(_label)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    rivals: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of keys of which a section may set one."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for pair in self.rivals:
            if all(getattr(self, name) not in (None, False, "", AUTO) for name in pair):  # False is 0 too
                raise ValueError(f"{' and '.join(pair)} exclude each other: keep one of them")
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and wanted in (int, float, int | None):
            raise ValueError(f"must be a number, got {value!r}")
        return value


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

    rivals = (("load_in_8bit", "load_in_4bit"),)

    @property
    def quantized(self) -> bool:
        return self.load_in_8bit or self.load_in_4bit


def _all_linear(value: Any) -> Any:
    """Turn PEFT's spelling `target_modules: all-linear` into a list of this one word."""
    if isinstance(value, list) and "all-linear" in value and len(value) > 1:
        raise ValueError("all-linear covers every linear layer: remove it or the other names")
    return [value] if value == "all-linear" else value


class LoraConfig(_Section):
    """The adapter (Hu et al., 2021): W + (lora_alpha / r) · B·A on each of `target_modules`."""

    r: int = Field(16, gt=0)
    lora_alpha: Number = Field(32, gt=0)
    target_modules: Annotated[list[str], BeforeValidator(_all_linear)] = Field(
        default=["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """The layers to adapt, by name; `all-linear` is every linear layer except the LM head."""
    lora_dropout: Number = Field(0.1, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    """Train magnitude and direction separately (DoRA, Liu et al., 2024)."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r instead of lora_alpha / r (Kalajdzievski, 2023)."""
    init_lora_weights: Literal[True] | Annotated[str, Field(pattern=r"^pissa(_niter_[1-9][0-9]*)?$")] = True
    """true: B = 0 (Hu et al., 2021); `pissa`: from the singular vectors of W (Meng et al., 2024);
    `pissa_niter_16`: from approximate ones after this many iterations, which is much faster."""

    init_adapter: str | None = None
    """Start from a saved adapter of the same shape and base instead of new weights."""

    @property
    def pissa(self) -> bool:
        return isinstance(self.init_lora_weights, str)

    def plain(self) -> LoraConfig:
        """The same adapter with B = 0, which needs no weights of the base."""
        return self.model_copy(update={"init_lora_weights": True})

    @model_validator(mode="after")
    def _pissa_alone(self) -> LoraConfig:
        if self.pissa and (self.use_dora or self.bias != "none"):
            other = "use_dora: true" if self.use_dora else f"bias: {self.bias}"
            raise ValueError(f"init_lora_weights: {self.init_lora_weights} and {other} exclude each other")
        if self.pissa and self.init_adapter:
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} and init_adapter exclude each other: keep one"
            )
        return self


class TrainingConfig(_Section):
    """The optimization; names and meanings are those of `transformers.TrainingArguments`.

    Five settings default to `auto`: `training.fit` chooses them from data and device after preparation.
    """

    num_train_epochs: FittedEpochs = AUTO
    max_steps: int = Field(-1, ge=-1)
    """Stop after this many optimizer steps; -1 trains `num_train_epochs`."""
    per_device_train_batch_size: FittedCount = AUTO
    """Examples per forward pass: the memory knob. It never changes the loss."""
    row_tokens: FittedCount = AUTO
    """At most this many tokens per forward pass: the other memory knob. It does not change the loss either.
    `auto` is 4,096 on a CPU, and on a GPU as many as its free memory holds."""
    gradient_accumulation_steps: FittedCount = AUTO
    """An optimizer step uses per_device_train_batch_size × this many examples."""
    learning_rate: Number = Field(3e-4, gt=0)
    loraplus_lr_ratio: Number | None = Field(None, ge=1)
    """LoRA+ (Hayou et al., 2024): B's learning rate is this many times `learning_rate`, which is A's."""
    weight_decay: Number = Field(0.01, ge=0)
    warmup_steps: FittedSteps = AUTO
    warmup_ratio: Number = Field(0.0, ge=0, lt=1)
    """Warm up for this share of all steps instead of `warmup_steps`."""
    regression_loss_weight: Number = Field(0.0, ge=0)
    """Regression-aware training (Lukasik et al., 2025): the weight of the expectation's squared error over
    the levels, in variances of the training targets, in each regression example's loss."""
    fp16: bool = False
    bf16: bool | None = None
    """None uses bfloat16 where the hardware supports it, and fp32 elsewhere."""
    gradient_checkpointing: bool = False
    """Keep only the input of each decoder layer, and recompute the layer in the backward pass."""
    gradient_checkpointing_offload: bool = False
    """Keep these inputs in CPU memory instead of GPU memory."""
    max_grad_norm: Number = Field(1.0, gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    dataloader_num_workers: FittedSteps = AUTO
    """Processes that pack steps ahead. `auto` is one if training runs on a GPU, else none."""
    torch_compile: bool = False
    """Compile what gains from it (RMS normalization): for long runs; a CPU needs a C++ compiler."""
    seed: int = Field(42, ge=0)
    max_length: int = Field(1024, gt=0)
    """Tokens of prompt and completion together; longer texts are cut and counted."""
    shared_prefix: bool = True
    """Compute the prefix that a task's examples share (their instruction) once per micro-batch."""
    logging_steps: int = Field(5, gt=0)
    eval_steps: int | None = Field(None, gt=0)
    """Validate every this many optimizer steps; None validates so often that it takes about a tenth of the
    run."""
    load_best_model_at_end: bool = True
    """Keep the weights of the best validation; false keeps the last ones."""
    metric_for_best_model: str = "loss"
    """What is best: `loss`, the mean over tasks; or a metric of one task, such as `headline_macro_f1`."""
    early_stopping_patience: int | None = Field(None, gt=0)
    """Stop after this many validations in a row without improvement; None trains to the end."""
    save_steps: int | None = Field(None, gt=0)
    """Save a checkpoint every this many optimizer steps; None saves at the end of each epoch."""
    save_minutes: Number | None = Field(5, gt=0)
    """Also save a checkpoint when the last one is this old; null turns this off."""
    save_total_limit: int = Field(2, gt=0)

    rivals = (("fp16", "bf16"), ("warmup_steps", "warmup_ratio"))

    @model_validator(mode="before")
    @classmethod
    def _batch_size_alias(cls, values: Any) -> Any:
        """`batch_size` is a short name of `per_device_train_batch_size`."""
        if isinstance(values, dict) and "batch_size" in values:
            if "per_device_train_batch_size" in values:
                raise ValueError(
                    "batch_size and per_device_train_batch_size are one setting: keep one of them"
                )
            values = dict(values)
            values["per_device_train_batch_size"] = values.pop("batch_size")
        return values

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 would train nothing: give a number of steps, or -1 for num_train_epochs")
        return value

    @model_validator(mode="after")
    def _complete(self) -> TrainingConfig:
        if self.gradient_checkpointing_offload and not self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing_offload needs gradient_checkpointing: true: set both or neither"
            )
        if self.warmup_ratio:
            self.__dict__["warmup_steps"] = 0  # so that a recipe written out in full reads back
        return self


Weights = dict[str, Annotated[Number, Field(ge=0)]]


class MultiTaskConfig(_Section):
    """How the tasks are mixed and how much each counts in the loss."""

    task_weights: Weights = Field(
        default_factory=lambda: {name: 1.0 for name in BUILT_IN_TASKS}, min_length=1
    )
    """The tasks to train, with the weight of each in the loss. Unset: the recipe's own tasks and any that it
    names elsewhere; without own tasks, the five built-in ones."""
    sampling_strategy: Literal["balanced", "proportional", "weighted", "temperature"] = "balanced"
    """balanced: equal shares; proportional: as in the data; weighted: by `sampling_weights`, or else by
    `task_weights`, which then do not weight the loss; temperature: shares ∝ size^(1/temperature)."""
    sampling_weights: Weights = {}
    """With `weighted`: each trained task's share of an epoch. Name every task; 0 leaves a task out."""
    temperature: Number = Field(2.0, ge=1)
    samples_per_epoch: int | None = Field(None, gt=0)
    """Examples of all tasks in one epoch; None is the number of training examples."""
    class_weights: dict[str, Literal["balanced"] | dict[Label, Annotated[Number, Field(ge=0)]]] = {}
    """Label task → each label's weight in the loss (1 where not given), or `balanced`: examples / (labels ·
    examples of the label), so that rare labels count as much as frequent ones."""
    instructions: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Task → an instruction that replaces the task's own."""

    @model_validator(mode="after")
    def _possible(self) -> MultiTaskConfig:
        if sum(self.task_weights.values()) == 0:
            raise ValueError("task_weights are all 0: give at least one task a weight above 0")
        if self.sampling_weights and self.sampling_strategy != "weighted":
            raise ValueError(
                "sampling_weights need sampling_strategy: weighted, "
                f"but sampling_strategy is {self.sampling_strategy}"
            )
        return self


class CustomTaskConfig(_Section):
    """A task defined in YAML alone; its data file is `data.tasks.<name>.file`."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    type: str = Field(min_length=1)
    """A task type: `classification`, `multilabel`, `qa`, `summarization`, `regression`, `instruction`, or one
    that a plug-in registers."""
    instruction: str = Field(min_length=1)
    labels: list[Label] = []
    options: dict[str, Any] = {}
    """Further arguments of the type, such as `unit` for a regression."""

    @model_validator(mode="after")
    def _own_name(self) -> CustomTaskConfig:
        if self.name in BUILT_IN_TASKS:
            raise ValueError(f"name '{self.name}' is a built-in task's: choose another")
        return self


def _or_one(kind: type) -> BeforeValidator:
    """Accept one value of this kind as a list of it."""
    return BeforeValidator(lambda value: [value] if isinstance(value, kind) else value)


class TaskDataConfig(_Section):
    """Where one task's examples come from, and how many are used."""

    dataset: str | None = None
    """A public dataset by name (`fintune data list`), or `sample`, the built-in one."""
    file: str | None = None
    """Your own file (CSV, TSV, JSON, Parquet, Excel; .gz and .zst too) or folder, instead of `dataset`."""
    validation_file: str | None = None
    test_file: str | None = None
    more_train: Annotated[list[str], _or_one(str)] = []
    """More files of training rows, beside `file` or `dataset`: corrected answers, for example. None of their
    rows is held out, and rows that repeat a held-out text are removed. Columns and labels are named as in
    `file`, or as in the task."""
    columns: dict[str, str] = {}
    """Field (text, target, question, group, split, time) → your file's column, where the names differ; or a
    path into its JSON, such as `data.items[].headline`. Instead of text, `document` → the column with the
    path of a document (HTML, PDF, Markdown, text) in or below the file's folder."""
    labels: dict[Label, Label | None] = {}
    """The data's label → the task's label, where they differ; null removes the rows with that label."""
    encoding: str | None = None
    """Your file's encoding, such as cp1252; None uses its byte order mark, UTF-8, or a reported guess."""
    sheet: str | None = None
    """The sheet of your Excel workbook; None is the first one."""
    time_format: str | None = None
    """How times are written: `day_first` or `month_first` (05/01/2026), `epoch` (seconds or milliseconds
    since 1970), or a strptime format such as `%d%m%Y`; None is ISO 8601, or any unambiguous form."""
    salience: Literal["none", "lead", "score", "learnt", "bm25", "graph"] | None = None
    """What to keep of a text that is too long: its first tokens (`none`), or the sentences that
    `fintune.text.salience` chooses; None is `learnt` for summarization and `none` for other types. `graph`,
    from earlier versions, is read as `score`."""
    max_train: int | None = Field(None, gt=0)
    max_validation: int | None = Field(None, gt=0)
    max_test: int | None = Field(None, gt=0)
    winsorize: Number = Field(0.005, ge=0, lt=0.5)
    """Clip regression's training targets to this quantile and to 1 minus it."""

    rivals = (("dataset", "file"),)

    @model_validator(mode="after")
    def _own_file(self) -> TaskDataConfig:
        own = ("validation_file", "test_file", "columns", "encoding", "sheet", "time_format")
        if not self.file and (given := [name for name in own if getattr(self, name)]):
            raise ValueError(f"{' and '.join(given)} only apply to your own file: set file")
        return self

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            "".encode(value or "utf-8")
        except LookupError:
            raise ValueError(f"unknown encoding {value!r}: try utf-8, utf-16, cp1252, …") from None
        return value

    @field_validator("time_format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is not None and value not in ("day_first", "month_first", "epoch") and "%" not in value:
            raise ValueError(
                f"must be day_first, month_first, epoch, or a format such as %d.%m.%Y, got {value!r}"
            )
        return value


class DataConfig(_Section):
    """Where data is read and kept."""

    dir: str | None = None
    """The public datasets' folder; None is FINTUNE_DATA_DIR, else data/raw, else the built-in sample."""
    prepared_dir: str = "data/processed"
    seed: int | None = Field(42, ge=0)
    """The seed of splits and limits, independent of `training.seed`. None, as in adapters of earlier
    versions, uses `training.seed`."""
    validation_fraction: Number = Field(0.1, gt=0, lt=0.5)
    test_fraction: Number = Field(0.1, gt=0, lt=0.5)
    """Split sizes of datasets without official splits."""
    near_duplicates: Number | None = Field(0.8, ge=0.3, le=1)
    """Remove training texts at least this similar to a held-out one (Jaccard index of three-word shingles);
    null removes exact duplicates only."""
    embargo_days: int = Field(5, ge=0)
    """Skip training rows from this many days before a held-out split, where records carry times."""
    commercial_only: bool = False
    """Leave out public datasets whose licence does not allow commercial use."""
    repair_encoding: bool = False
    """Repair text that was decoded with the wrong encoding (`fintune data report` counts it). This changes
    test sets too, so figures no longer compare with published ones."""
    tasks: dict[str, TaskDataConfig] = {}


class TextFormatConfig(_Section):
    """Constraints on a text task's answers; each is off by default."""

    max_new_tokens: int | None = Field(None, gt=0)
    """The longest answer in tokens; None is the task type's default (48 for qa, 96 for summaries)."""
    bullets: int | None = Field(None, gt=0)
    """At most this many lines, each starting with a dash."""
    bullet_tokens: int | None = Field(None, gt=3)
    """At most this many tokens in each line."""
    copy_spans: bool = False
    """The answer is copied from the record's text, word for word."""
    source_numbers: bool = False
    """Every number in the answer, with its scale, occurs in the record's text or question."""

    @model_validator(mode="after")
    def _one_shape(self) -> TextFormatConfig:
        if self.copy_spans and (self.bullets or self.bullet_tokens):
            raise ValueError("copy_spans and bullets exclude each other: keep one of them")
        if self.bullet_tokens and not self.bullets:
            raise ValueError("bullet_tokens is set without bullets, the number of lines: set both")
        return self


class EvaluationConfig(_Section):
    """How the model is asked, and what its figures are compared with."""

    batch_size: int = Field(16, gt=0)
    base_model: bool = True
    """Also evaluate the untuned base model."""
    base_model_max_test: int | None = Field(None, gt=0)
    """Examples per task for the untuned base; None is all of them."""
    baselines: list[Literal["tfidf", "lexicon", "zero"]] = ["tfidf", "lexicon", "zero"]
    """Baselines beside the simplest: TF-IDF with a linear model, a finance lexicon, no change (numbers)."""
    other_models: list[str] = []
    """Hub classifiers or local folders that also answer the label tasks: `[ProsusAI/finbert]`."""
    max_validation: int = Field(50, gt=0)
    """Validation examples per task scored during training."""
    report_to: list[Literal["wandb", "tensorboard"]] = []
    """Trackers that get the final figures and tables, besides the files."""
    bertscore_encoder: str | None = None
    """A local encoder folder for BERTScore; None is the one the `eval` extra installs."""
    label_normalization: Literal["auto", "none", "tokens"] = "auto"
    """none: score labels by the log-probability of all their tokens; tokens: by its mean; auto: as
    validation chose."""
    calibration: Literal["none", "contextual"] = "none"
    """contextual: divide labels by their probability after content-free inputs (Zhao et al., 2021)."""
    number_decoding: Literal["expectation", "greedy"] = "expectation"
    """expectation: the mean of the distribution over levels (Lukasik et al., 2025); greedy: the likeliest."""
    formats: dict[str, TextFormatConfig] = {}
    """Text task → constraints on its answers."""

    def tracked(self, use_wandb: bool) -> EvaluationConfig:
        """This configuration, reporting to W&B too if `use_wandb`."""
        more = ["wandb"] if use_wandb and "wandb" not in self.report_to else []
        return self.model_copy(update={"report_to": [*self.report_to, *more]})


class Recipe(_Section):
    """Everything a user may vary in a run."""

    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig)
    lora_config: LoraConfig = Field(default_factory=LoraConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    multi_task: MultiTaskConfig = Field(default_factory=MultiTaskConfig)
    custom_task: Annotated[list[CustomTaskConfig], _or_one(dict)] = []
    """One task block, or a list of them."""
    plugins: list[str] = []
    """Python modules that register tasks, to import: installed, beside the recipe, or in the working
    folder."""
    _plugin_folder: str | None = PrivateAttr(None)
    data: DataConfig = Field(default_factory=DataConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    debug: bool = False
    """Set by `--debug`: the run is too small for meaningful figures, and every table says so."""

    @property
    def plugin_folder(self) -> str | None:
        """The folder where plug-ins may be besides the installed packages; see `read_from`."""
        return self._plugin_folder

    def read_from(self, folder: str | None) -> Recipe:
        """This recipe, marked as read by the user from a folder: its plug-ins may be imported from there.

        An adapter's recipe is never marked: someone else may have made the adapter and put code in it.
        """
        self._plugin_folder = folder if self.plugins else None
        return self

    def changed(self, section: str, **values: Any) -> Recipe:
        """This recipe with other values in one section; they are not checked."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    def on_base(self, name: str) -> Recipe:
        """This recipe on another base, which is not quantized."""
        return self.model_copy(update={"base_model": BaseModelConfig(name=name)})

    @property
    def data_seed(self) -> int:
        return self.training.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _pissa_needs_full_weights(self) -> Recipe:
        base = self.base_model
        if self.lora_config.pissa and base.quantized:
            bits = "load_in_4bit" if base.load_in_4bit else "load_in_8bit"
            raise ValueError(
                f"lora_config.init_lora_weights: {self.lora_config.init_lora_weights} changes the base's "
                f"weights, which base_model.{bits} has quantized: remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _weights_name_tasks(self) -> Recipe:
        known = [*BUILT_IN_TASKS, *(task.name for task in self.custom_task)]
        for key, names in (
            ("multi_task.task_weights", self.multi_task.task_weights),
            ("multi_task.sampling_weights", self.multi_task.sampling_weights),
            ("multi_task.class_weights", self.multi_task.class_weights),
            ("multi_task.instructions", self.multi_task.instructions),
            ("data.tasks", self.data.tasks),
            ("evaluation.formats", self.evaluation.formats),
        ):
            for name in names:
                if name not in known and not self.plugins and name not in _entry_point_tasks():
                    raise ValueError(f"{key} names the unknown task '{name}'{hint(name, known)}")
        return self

    @model_validator(mode="after")
    def _own_tasks_alone(self) -> Recipe:
        mix = self.multi_task
        if self.custom_task and "task_weights" not in mix.model_fields_set:
            settings = (mix.sampling_weights, mix.class_weights, mix.instructions, self.data.tasks)
            named = [name for setting in (*settings, self.evaluation.formats) for name in setting]
            weights = dict.fromkeys([*named, *(task.name for task in self.custom_task)], 1.0)
            self.__dict__["multi_task"] = mix.model_copy(update={"task_weights": weights})
        return self

    @model_validator(mode="after")
    def _every_task_has_a_sampling_weight(self) -> Recipe:
        mix = self.multi_task
        trained = [*mix.task_weights, *(task.name for task in self.custom_task)]
        left_out = [
            name
            for name in dict.fromkeys(trained)
            if mix.task_weights.get(name, 1.0) > 0 and name not in mix.sampling_weights
        ]
        if mix.sampling_weights and left_out:
            raise ValueError(
                f"multi_task.sampling_weights has no weight for {', '.join(left_out)}: give each trained "
                "task one (0 draws no examples of it)"
            )
        return self

    def columns(self, task: str) -> dict[str, str]:
        """Field → column of a task's own file; {} if there is none."""
        return self.data.tasks[task].columns if task in self.data.tasks else {}

    def debugged(self) -> Recipe:
        """This recipe at the smallest scale that still exercises everything (`--debug`)."""
        raw = self.model_dump(exclude_unset=True)
        tasks = raw.setdefault("data", {}).setdefault("tasks", {})
        for name in [*self.multi_task.task_weights, *(task.name for task in self.custom_task)]:
            tasks[name] = {**tasks.get(name, {}), "max_train": 24, "max_validation": 6, "max_test": 8}
        raw["data"]["prepared_dir"] = f"{self.data.prepared_dir.removesuffix('-debug')}-debug"
        raw.setdefault("training", {}).update(
            num_train_epochs=1,
            max_steps=6,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            warmup_steps=0,
            warmup_ratio=0.0,
            max_length=256,
            logging_steps=1,
        )
        raw["training"].pop("batch_size", None)
        raw["debug"] = True
        return Recipe.model_validate(raw).read_from(self._plugin_folder)


def _entry_point_tasks() -> list[str]:
    return [point.name for point in entry_points(group="fintune.tasks")]
