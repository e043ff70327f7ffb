"""The recipe: the guide's keys are taken as written, and every mistake is answered in a sentence."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import Recipe
from fintune.errors import ConfigError
from fintune.recipes import load_recipe, recipe_from
from fintune.tasks import task_set

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "live.yaml")

GUIDE = """
base_model:
  name: "meta-llama/Llama-2-7b-hf"
lora_config:
  r: 16
  lora_alpha: 32
  target_modules: ["q_proj", "v_proj"]
  lora_dropout: 0.1
  bias: "none"
training:
  num_train_epochs: 5
  learning_rate: 3e-4
  batch_size: 8
  fp16: true
multi_task:
  task_weights: {sentiment: 1.0, summarization: 1.5, custom_classification: 1}
  sampling_strategy: "balanced"
custom_task:
  name: "custom_classification"
  type: "classification"
  labels: ["label1", "label2", "label3"]
  instruction: "Classify the following text..."
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_the_guides_keys_are_read_as_the_guide_writes_them(write):
    recipe = load_recipe(write(GUIDE))
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.per_device_train_batch_size == 8
    assert recipe.multi_task.task_weights["summarization"] == 1.5
    assert recipe.custom_task[0].labels == ["label1", "label2", "label3"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid(path):
    load_recipe(path)


def test_an_override_replaces_any_key_and_creates_its_section(write):
    recipe = load_recipe(write("training: {seed: 1}"), ["training.learning_rate=1e-4", "lora_config.r=4"])
    assert (recipe.training.seed, recipe.training.learning_rate, recipe.lora_config.r) == (1, 1e-4, 4)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("training: {learning_rate: -0.1}", ["training.learning_rate must be > 0", "-0.1"]),
        ("training: {lerning_rate: 0.1}", ["training.lerning_rate", "'learning_rate'"]),
        ("trainin: {}", ["trainin", "'training'"]),
        (
            "training: {max_steps: 0}",
            ["training.max_steps: 0 would train nothing", "-1 for num_train_epochs"],
        ),
        (
            "lora_config: {target_modules: [q_proj, all-linear]}",
            ["lora_config.target_modules", "remove it or"],
        ),
        ("lora_config: {target_modules: q_proj}", ["lora_config.target_modules must be", "list", "'q_proj'"]),
        (
            "multi_task: {sampling_strategy: weighted, sampling_weights: {sentiment: 2, qa: 1},"
            " task_weights: {sentiment: 1, qa: 1, headline: 1, regression: 0}}",
            ["multi_task.sampling_weights has no weight for headline: give"],
        ),
        ("custom_task: {nme: a}", ["custom_task.nme", "'name'"]),
        ("training: {learning_rate: fast}", ["training.learning_rate", "'fast'"]),
        ("training: {batch_size: 2, per_device_train_batch_size: 4}", ["one setting"]),
        ("training: {fp16: true, bf16: true}", ["fp16 and bf16"]),
        ("training: {gradient_checkpointing_offload: true}", ["needs gradient_checkpointing: true"]),
        ("base_model: {load_in_8bit: true, load_in_4bit: true}", ["load_in_8bit and load_in_4bit"]),
        ("multi_task: {sampling_strategy: fair}", ["sampling_strategy", "'balanced'", "'fair'"]),
        ("multi_task: {task_weights: {sentimnt: 1}}", ["unknown task 'sentimnt'", "'sentiment'"]),
        ("data: {tasks: {sentiment: {fil: a.csv}}}", ["data.tasks.sentiment.fil", "'file'"]),
        ("multi_task: {task_weights: {qa: 0}}", ["all 0"]),
        ("", ["is empty"]),
        ("- 1", ["not sections"]),
        ("training: [", ["not valid YAML"]),
        ("training: 3", ["training must be", "3"]),
    ],
)
def test_a_mistake_is_answered_with_its_file_key_value_and_fix(write, text, parts):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    for part in [*parts, str(path)]:
        assert part in str(caught.value)


@pytest.mark.parametrize("override", ["training.seed", "=3", "training.seed.x=1", "training.seed=["])
def test_a_malformed_override_is_refused(write, override):
    with pytest.raises(ConfigError, match="--set"):
        load_recipe(write("training: {seed: 1}"), [override])


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe at .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_recipe_is_validated_without_importing_torch():
    code = "import sys, fintune.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_override_of_one_of_two_rival_keys_replaces_the_other(write):
    path = write("training: {per_device_train_batch_size: 32, warmup_ratio: 0.1}")
    recipe = load_recipe(path, ["training.batch_size=8", "training.warmup_steps=50"])
    assert recipe.training.per_device_train_batch_size == 8
    assert (recipe.training.warmup_steps, recipe.training.warmup_ratio) == (50, 0.0)


def test_a_recipe_that_was_kept_reads_back_the_same(write):
    for path in (*RECIPES, write(GUIDE)):
        recipe = load_recipe(path)
        assert recipe_from(recipe.model_dump(), [], "kept") == recipe
    changed = recipe_from(recipe.model_dump(), ["training.batch_size=2"], "kept")
    assert changed.training.per_device_train_batch_size == 2


@pytest.mark.parametrize("text", ["learning_rate: true", "num_train_epochs: .inf", "seed: yes"])
def test_a_switch_or_infinity_is_no_number(write, text):
    with pytest.raises(ConfigError, match=text.split(":")[0]):
        load_recipe(write(f"training: {{{text}}}"))


def test_a_training_seed_leaves_the_splits_alone(write):
    recipe = load_recipe(write("training: {seed: 1}"))
    assert (recipe.training.seed, recipe.data_seed) == (1, 42)
    assert load_recipe(write("training: {seed: 1}\ndata: {seed: null}")).data_seed == 1  # older adapters


OWN = "custom_task: {name: own, type: instruction, instruction: Answer.}\n"


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ("", ["own"]),
        ("data: {tasks: {own: {file: a.csv}}}", ["own"]),
        ("data: {tasks: {qa: {dataset: sample}, own: {file: a.csv}}}", ["qa", "own"]),
        ("multi_task: {instructions: {headline: Which way}}", ["headline", "own"]),
        ("multi_task: {task_weights: {sentiment: 1}}", ["sentiment", "own"]),
    ],
)
def test_a_recipe_with_a_task_of_its_own_trains_that_and_what_it_names(write, more, trained):
    recipe = load_recipe(write(OWN + more))
    assert task_set(recipe).names() == trained
    assert task_set(Recipe.model_validate(recipe.model_dump())).names() == trained
    assert task_set(recipe.debugged()).names() == trained


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
KEYS = st.sampled_from(
    "base_model training data tasks custom_task lora_config multi_task name r file".split()
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | PLAIN, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4).map(lambda raw: yaml.safe_dump(raw)) | st.text(max_size=60))
def test_whatever_a_recipe_holds_it_is_read_or_refused_in_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with contextlib.suppress(ConfigError):
        load_recipe(path)


LAUGHS = "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [{f'*a{i - 1},' * 10}]\n" for i in range(1, 12))


ENDLESS = {
    "laughs": LAUGHS,
    "circle": "data: &a [*a]",
    "deep": "data: " + "[" * 900,
    "deeper": "[" * 40_000,
    "digits": "seed: " + "9" * 6000,
    "date": "d: 2026-02-30",
    "huge": "data: '" + "x" * 2_000_000 + "'",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_recipe_that_unfolds_without_end_is_refused_at_once(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")
    assert time.perf_counter() - begun < 60
