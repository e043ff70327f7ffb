"""Ray on this machine: the lines of one process in their order, also when a worker dies in between."""

import contextlib
import importlib.util
import json
import os
import random

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from fintune import cluster
from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.data.raw.readers import row_files
from fintune.errors import DataError, ModelError

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install -e '.[ray]'", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """Ray of two CPUs on this machine, ended after this file."""
    cluster.connect()
    import ray

    assert ray.cluster_resources()["CPU"] >= 2
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    yield
    ray.shutdown()


@pytest.fixture
def recipe(workdir, tiny_base):
    """The working folder's default recipe: the tiny base, untuned, found by a path of that folder."""
    (workdir / "base").symlink_to(tiny_base)
    (workdir / "configs").mkdir()
    content = "base_model: {name: base}\ntraining: {bf16: false, max_length: 128}\n"
    (workdir / "configs" / "default.yaml").write_text(content)
    return workdir


def headlines(count):
    """Rows of many lengths, a few of which cannot be answered: without a text, or with too long a one."""
    words = random.Random(7)
    for n in range(count):
        text = " ".join(words.choices(["profit", "rose", "fell", "by", "5 %"], k=words.randint(1, 30)))
        yield {"id": f"r{n}", "text": "" if n % 50 == 9 else "profit " * 500 if n % 90 == 5 else text}


def test_preparing_on_ray_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "CUT_BYTES", 3_000)
    path = tmp_path / "own.jsonl"
    rows = ({"text": f"Unit {n} reported.", "target": n % 3} for n in range(300))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(row_files.cuts(*row_files.row_files(path, "file"))) > 3
    labels = {"0": "positive", "1": "negative", "2": "neutral"}
    settings = {"sentiment": {"file": str(path), "labels": labels}}
    recipe = Recipe.model_validate(
        {
            "multi_task": {"task_weights": {"sentiment": 1}},
            "data": {"prepared_dir": str(tmp_path / "prepared"), "tasks": settings},
        }
    )
    here = prepare(recipe, say=lambda line: None)
    there = prepare(recipe, force=True, say=lambda line: None, mapper=cluster.ray_map)
    assert there.manifest == here.manifest  # with every file's checksum
    path.write_text('{"text": "Unit 1 reported.", "target": "up"}\n' * 300)
    with pytest.raises(DataError, match="labels that the task does not know"):
        prepare(recipe, say=lambda line: None, mapper=cluster.ray_map)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(plain, ours):
    """Whether two answers are the same; the last digits depend on what was computed together."""
    shares = [line.get("probabilities", {}) for line in (plain, ours)]
    rest = [{key: value for key, value in line.items() if key != "probabilities"} for line in (plain, ours)]
    return rest[0] == rest[1] and shares[1] == pytest.approx(shares[0], abs=1e-5)


def test_ray_answers_a_folder_as_one_process_does_in_its_order_also_when_a_worker_is_killed(
    recipe, capsys, monkeypatch
):
    mark = recipe / "died"

    class Mortal(cluster.Answerer):
        """Dies once, in the middle of its work, as a process killed for its memory does."""

        def __call__(self, batch):
            answered = super().__call__(batch)
            with contextlib.suppress(FileExistsError):
                mark.touch(exist_ok=False)
                os._exit(9)
            return answered

    for year, count in ((2023, 130), (2024, 70)):
        pads.write_dataset(
            pa.Table.from_pylist(list(headlines(count))),
            recipe / "in" / f"year={year}",
            format="parquet",
            max_rows_per_file=60,
            max_rows_per_group=60,
        )
    flags = ["predict", "--task", "headline", "--input_file", "in"]
    assert main([*flags, "--output_file", "plain.jsonl"]) == 0
    monkeypatch.setattr(cluster, "Answerer", Mortal)
    assert main([*flags, "--output_file", "ray/", "--ray", "--workers", "2"]) == 0
    assert "192 answers written to ray/" in capsys.readouterr().out
    assert mark.exists()

    plain = lines_of(recipe / "plain.jsonl")
    rows = pads.dataset(recipe / "ray", format="parquet").to_table().to_pylist()
    assert len(plain) == len(rows) == 200 and sum("error" in line for line in plain) == 8
    for line, row in zip(plain, rows, strict=True):
        ours = {key: value for key, value in row.items() if value is not None and key[:5] != "proba"}
        if "error" not in line:
            ours["probabilities"] = {label: row[f"probability_{label}"] for label in line["probabilities"]}
        assert same(line, ours)


def test_a_conversations_system_message_reaches_the_workers(recipe):
    more = "custom_task: [{name: chat, type: instruction, instruction: Answer.}]\n"
    more += "evaluation: {formats: {chat: {max_new_tokens: 6}}}\n"
    with (recipe / "configs" / "default.yaml").open("a") as stream:
        stream.write(more)
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a bond?"}]
    rows = [{"messages": said}, {"messages": said[1:]}, {"messages": []}]
    (recipe / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["predict", "--task", "chat", "--input_file", "in.jsonl"]
    assert main([*flags, "--output_file", "plain.jsonl"]) == 0
    assert main([*flags, "--output_file", "ray.jsonl", "--ray"]) == 0
    plain, ours = lines_of(recipe / "plain.jsonl"), lines_of(recipe / "ray.jsonl")
    assert [line.get("prediction") for line in ours] == [line.get("prediction") for line in plain]
    assert plain[0]["prediction"] != plain[1]["prediction"] and ours[2]["error"] == plain[2]["error"]


def test_what_a_worker_cannot_read_is_one_sentence(recipe):
    (recipe / "in").mkdir()
    (recipe / "in" / "a.csv").write_text("text\nShares rise\n")
    (recipe / "in" / "b.csv").write_text("body\nShares rise\n")
    with pytest.raises(DataError, match=r"^in/b\.csv has no column 'text'"):
        cluster.predict_on_ray(None, "headline", "in", "out/")


def test_ray_map_is_map_in_order_for_any_value_and_a_killed_task_is_done_again(tmp_path):
    mark = str(tmp_path / "died")

    def square(n):
        if n == 5 and not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(9)
        return {"n": n * n, "table": pa.table({"x": [n] * n}), "none": None, "pair": (n, str(n))}

    found = list(cluster.ray_map(square, range(12), workers=2))
    assert found == [
        {"n": n * n, "table": pa.table({"x": [n] * n}), "none": None, "pair": (n, str(n))} for n in range(12)
    ]
    assert list(cluster.ray_map(square, [])) == []


def test_ray_map_raises_what_the_function_raised():
    def refuse(n):
        raise DataError(f"shard {n} is damaged")

    with pytest.raises(DataError, match=r"^shard 3 is damaged$"):
        list(cluster.ray_map(refuse, [3]))


def test_work_that_kills_its_worker_every_time_ends_in_a_sentence():
    with pytest.raises(ModelError, match=r"^A worker died 4 times over the same work"):
        list(cluster.ray_map(lambda n: os._exit(9), [1]))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"])
def test_an_address_without_a_cluster_is_refused_at_once(address):
    with pytest.raises(DataError, match=f"^--ray is {address}, but no Ray cluster answers there"):
        cluster.connect(address)
