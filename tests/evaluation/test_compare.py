"""fintune compare: two runs on the same examples, several seeds, and a refusal where the examples differ."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console
from rules import RuleEngine
from scipy.stats import binomtest

from fintune.cli import main
from fintune.config import EvaluationConfig, Recipe
from fintune.data.prepare.dataset import prepare
from fintune.errors import DataError
from fintune.evaluation.compare import compare, spread
from fintune.evaluation.measure_info import known_measure
from fintune.evaluation.runs import Run
from fintune.pipeline import evaluate
from fintune.reports.comparison import markdown, print_comparison
from fintune.tasks import known_tasks

CONFIG = EvaluationConfig(base_model=False, baselines=[])


class Careless(RuleEngine):
    """Reads as the rule engine does, and answers two of three examples as the untuned base."""

    def predict(self, task, records, **options):
        read, base = (
            super(Careless, self).predict(task, records, **{**options, "use_adapter": use})
            for use in (True, False)
        )
        return [base[i] if i % 3 else read[i] for i in range(len(records))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two evaluations on the same data, `good` and `careless`, and `fewer` examples of the first."""
    root = tmp_path_factory.mktemp("runs")
    sample = {name: {"dataset": "sample", "max_train": 40, "max_test": 24} for name in known_tasks()}
    data = {"prepared_dir": str(root / "prepared"), "tasks": sample}
    prepared = prepare(Recipe.model_validate({"data": data}), say=lambda line: None)
    with pytest.MonkeyPatch.context() as patch:  # BERTScore takes seconds
        patch.setattr("fintune.metrics.bertscore.ENCODER_PACKAGE", "no_such_package")
        for name, engine, limit in (
            ("careless", Careless, None),
            ("good", RuleEngine, None),
            ("fewer", RuleEngine, 20),
        ):
            options = {"say": lambda line: None, "progress": False, "max_test": limit}
            evaluate(engine(prepared.task_set()), prepared, CONFIG, root / name / "results.json", **options)
    return root


def _sides(folders):
    return Run.load(folders / "careless"), Run.load(folders / "good" / "results.json")


def test_every_metric_of_every_task_has_a_difference_and_most_an_interval_and_a_test(folders):
    a, b = _sides(folders)
    compared = compare(a, b, permutations=200, resamples=200)
    assert list(compared.tasks) == list(a.tasks)
    for name, entry in compared.tasks.items():
        assert set(entry.metrics) == set(a.results.tasks[name].systems["adapter"].metrics)
        assert entry.won + entry.lost + entry.tied == entry.n == 24
        for row in entry.metrics.values():
            if row.interval:
                assert row.difference == pytest.approx(row.b - row.a)
                assert row.interval[0] <= row.difference + 1e-9
                assert row.difference - 1e-9 <= row.interval[1]
    accuracy = compared.tasks["sentiment"].metrics["accuracy"]
    assert accuracy.difference > 0 and accuracy.test == "permutation"  # statements of one group
    assert compared.tasks["sentiment"].metrics["ece"].interval is None


def test_won_and_lost_are_counted_and_named_from_the_answers(folders):
    a, b = _sides(folders)
    entry = compare(a, b, task="sentiment", permutations=50).tasks["sentiment"]
    rows_a, rows_b = a.tasks["sentiment"].rows, b.tasks["sentiment"].rows
    right = {i: (rows_a[i].prediction == r.target, r.prediction == r.target) for i, r in rows_b.items()}
    assert entry.won == sum(y > x for x, y in right.values())
    assert entry.lost == sum(y < x for x, y in right.values())
    assert entry.won_examples and all(right[row.id] == (False, True) for row in entry.won_examples)


def test_a_run_wins_nothing_from_itself_and_a_swap_turns_the_sign(folders):
    a, b = _sides(folders)
    same = compare(a, a, permutations=50)
    assert all(row.difference in (0, None) for entry in same.tasks.values() for row in entry.metrics.values())
    one, two = (
        compare(*pair, task="qa", metric="f1", permutations=50).tasks["qa"] for pair in ((a, b), (b, a))
    )
    assert (one.won, one.lost) == (two.lost, two.won)
    assert one.metrics["f1"].difference == -two.metrics["f1"].difference


def test_answers_to_instructions_win_and_lose_as_those_of_other_tasks_do(tmp_path):
    rest = "Nothing else was said. The site was not named. No date was given."
    lines = [
        {"text": f"Orders at plant {i} rose by {i + 2} percent. {rest}", "split": split,
         "target": f"Orders at plant {i} rose by {i + 2} percent."}
        for i, split in enumerate(["train"] * 8 + ["validation"] * 4 + ["test"] * 9)
    ]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {"name": "rewrite", "type": "instruction", "instruction": "Say it shorter."}
    own = {"rewrite": {"file": str(tmp_path / "own.jsonl")}}
    data = {"prepared_dir": str(tmp_path / "prepared"), "near_duplicates": None, "tasks": own}
    recipe = {"custom_task": task, "multi_task": {"task_weights": {"rewrite": 1}}, "data": data}
    prepared = prepare(Recipe.model_validate(recipe), say=lambda line: None)
    for name, engine in (("a", Careless), ("b", RuleEngine)):
        output = tmp_path / name / "results.json"
        evaluate(engine(prepared.task_set()), prepared, CONFIG, output, say=lambda line: None, progress=False)
    entry = compare(Run.load(tmp_path / "a"), Run.load(tmp_path / "b"), permutations=20).tasks["rewrite"]
    assert entry.measure == "f1" and len(entry.won_examples) == 3
    assert (entry.n, entry.won, entry.lost, entry.tied) == (9, 6, 0, 3)


def test_what_ranks_answers_is_what_the_results_say(folders, tmp_path):
    for name in ("careless", "good"):
        shutil.copytree(folders / name, tmp_path / name)
        path = tmp_path / name / "results.json"
        raw = json.loads(path.read_text())
        cost = {"name": "cost", "title": "Cost", "better": "lower", "columns": ["f1"]}
        raw["tasks"]["sentiment"] |= {"ranked_by": "brier"}  # where smaller is better, by its name
        raw["tasks"]["qa"] |= {"type": "of a plug-in", "ranked_by": "f1", "measures": [cost]}
        path.write_text(json.dumps(raw))
    found = compare(Run.load(tmp_path / "careless"), Run.load(tmp_path / "good"), permutations=20).tasks
    usual = compare(*_sides(folders), permutations=20).tasks
    assert found["sentiment"].measure == "brier" and found["sentiment"].won > found["sentiment"].lost
    assert (found["qa"].won, found["qa"].lost) == (usual["qa"].lost, usual["qa"].won)
    assert usual["qa"].won != usual["qa"].lost  # or this shows nothing


def test_accuracy_of_independent_examples_is_tested_exactly(folders):
    a, b = _sides(folders)
    for run in (a, b):
        for row in run.tasks["sentiment"].rows.values():
            row.group = ""
    entry = compare(a, b, task="sentiment", metric="accuracy", permutations=50).tasks["sentiment"]
    row = entry.metrics["accuracy"]
    assert row.test == "McNemar, exact" and (entry.clusters.by, entry.clusters.n) == ("example", 24)
    assert row.p_value == pytest.approx(binomtest(entry.won, entry.won + entry.lost).pvalue)


def test_numbers_with_dates_are_compared_by_date(folders):
    a, b = _sides(folders)
    for run in (a, b):
        for place, row in enumerate(sorted(run.tasks["regression"].rows.values(), key=lambda row: row.id)):
            row.time = f"2015-10-{place % 6 + 1:02}"
    entry = compare(a, b, task="regression", permutations=50).tasks["regression"]
    assert (entry.clusters.by, entry.clusters.n) == ("cluster", 6)


def test_runs_on_different_examples_are_refused_in_one_sentence(folders, tmp_path):
    a = Run.load(folders / "good")
    with pytest.raises(
        DataError, match=r"sentiment has 24 test examples .* 20 .* 4 of them .* one only: evaluate both"
    ):
        compare(a, Run.load(folders / "fewer"))
    shutil.copytree(folders / "good", tmp_path / "changed")
    path = tmp_path / "changed" / "results-predictions.jsonl"
    path.write_text(path.read_text().replace('"target": "positive"', '"target": "negative"', 1))
    with pytest.raises(DataError, match=r"sentiment: 1 test examples .* different texts or targets"):
        compare(a, Run.load(tmp_path / "changed"))


def test_files_that_cannot_be_compared_are_refused_with_the_reason(folders, tmp_path):
    def changed(**values):
        shutil.copytree(folders / "good", tmp_path / "run", dirs_exist_ok=True)
        path = tmp_path / "run" / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return tmp_path / "run"

    with pytest.raises(DataError, match="format 1, and this version reads"):
        Run.load(changed(format=1))
    (changed(format=2) / "results-predictions.jsonl").unlink()
    with pytest.raises(DataError, match="holds the predictions: evaluate again"):
        Run.load(tmp_path / "run")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="holds no results"):
        Run.load(tmp_path / "other.json")
    with pytest.raises(DataError, match="no results of"):
        Run.load(folders / "prepared")
    with pytest.raises(DataError, match="no results file or folder"):
        Run.load(tmp_path / "nowhere")
    a = Run.load(folders / "good")
    with pytest.raises(DataError, match="--task is headlines"):
        compare(a, a, task="headlines")
    with pytest.raises(DataError, match="--metric is speed"):
        compare(a, a, metric="speed", permutations=2)


def test_seeds_have_a_mean_and_the_samples_standard_deviation(folders):
    a, b = _sides(folders)
    found = spread([a, b, b], task="sentiment", metric="accuracy").tasks["sentiment"].metrics["accuracy"]
    values = [run.tasks["sentiment"].metrics["accuracy"] for run in (a, b, b)]
    mean = sum(values) / 3
    assert found.values == values and found.mean == pytest.approx(mean) and found.n == 3
    assert found.sd == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    with pytest.raises(DataError, match="at least two runs, got 1"):
        spread([a])


def test_an_improvement_minds_that_an_error_should_fall():
    accuracy, mse, width = map(known_measure, ("accuracy", "mse", "mean_interval_width"))
    assert accuracy.improves(0.1) and mse.improves(-0.1) and mse.improves(0.1) is False
    assert mse.improves(0) is None and mse.improves(None) is None and width.improves(-0.1) is None


def test_the_command_prints_a_table_of_80_columns_and_writes_json_and_markdown(folders, tmp_path, capsys):
    paths = [str(folders / "careless"), str(folders / "good")]
    for name in ("out.json", "out.md"):
        output = str(tmp_path / name)
        assert main(["compare", *paths, "--metric", "accuracy", "--output_file", output]) == 0
    printed = capsys.readouterr().out
    assert "sentiment" in printed and "McNemar" in printed and "of 24 examples B wins" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["tasks"]) == {"sentiment", "headline"}
    text = (tmp_path / "out.md").read_text()
    assert "## sentiment: examples B won" in text
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_comparison(compare(*_sides(folders), permutations=50), console)
    table = console.file.getvalue().partition("A is ")[0]
    assert max(map(len, table.splitlines())) <= 80 and "…" not in table and "true numbers" in table
    assert main(["compare", *paths, paths[1], "--seeds", "--output_file", str(tmp_path / "seeds.md")]) == 0
    assert "over 3 runs" in (tmp_path / "seeds.md").read_text() and " ± " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "takes two runs, got 1"),
        (["good", "good", "--output_file", "x.txt"], "must end in .json or .md"),
        (["good", "--seeds"], "at least two runs"),
        (["good", "none", "--output_file", "."], "--output_file is ., which is a folder"),
        (["good", "none", "--output_file", "good/results.json/x.md"], "its folder cannot be written to"),
        (["good", "none", "--output_file", "/proc/x.json"], "its folder cannot be written to"),
        (["good", "careless", "--output_file", "good/results.json"], "which is one of the results"),
    ],
)
def test_the_command_refuses_in_one_sentence(folders, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    assert main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out  # before the work


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("id"), "line 2: id: Field required: evaluate again"),
        (lambda row: row.update(target=None), "line 2: target: Input should be a valid"),
        (lambda row: row["scores"].update(correct="x"), r"line 2: scores.correct: Input should be a valid"),
    ],
)
def test_a_damaged_line_of_predictions_is_named(folders, tmp_path, change, message, capsys):
    shutil.copytree(folders / "good", tmp_path / "run")
    path = tmp_path / "run" / "results-predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows[1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (
        ["compare", str(tmp_path / "run"), str(folders / "good")],
        ["report", str(tmp_path / "run")],
    ):
        assert main(command) == 2
        assert re.search(message, capsys.readouterr().err)


def test_text_from_data_cannot_break_the_markdown(folders):
    compared = compare(*_sides(folders), task="sentiment", permutations=50)
    compared.tasks["sentiment"].won_examples[0].text = "a | b <script>\n# Heading"
    text = markdown(compared)
    assert "<script>" not in text and "\n# Heading" not in text
