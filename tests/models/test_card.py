"""The model card says what went in, under which licence, and whether it may be used commercially."""

import shutil

from fintune.config import Recipe
from fintune.data.prepare.dataset import PreparedDataset
from fintune.models import card
from fintune.models.base import load_tokenizer
from fintune.prompts import PromptTemplate
from fintune.tasks import Record, known_tasks


def test_the_card_lists_every_dataset_with_its_licence_and_commercial_use(
    tmp_path, tiny_base, random_adapter
):
    entries = {
        "sentiment": ("financial_phrasebank", "CC BY-NC-SA 3.0"),
        "headline": ("twitter_financial_news", "MIT"),
        "notes": ("notes.csv", "your own"),
    }
    tasks = {
        name: {
            "dataset": dataset,
            "licence": licence,
            "counts": {"train": 7},
            "task": known_tasks()["headline" if name == "notes" else name].to_dict(),
        }
        for name, (dataset, licence) in entries.items()
    }
    facts = {
        "base_model": "smollm2-135m-instruct",
        "training": None,
        "machine": {"gpu": None, "processor": "x"},
        "resumed_from": None,
        "optimizer_steps": 3,
        "seed": 1,
        "trainable_parameters": 1,
        "all_parameters": 10,
    }
    card.write(tmp_path, facts, Recipe(), PreparedDataset(tmp_path, {"tasks": tasks}))
    text = (tmp_path / "README.md").read_text()
    assert "| task | dataset | licence | commercial use | training examples |" in text
    assert "| sentiment | financial_phrasebank | CC BY-NC-SA 3.0 | no | 7 |" in text
    assert "| headline | twitter_financial_news | MIT | yes | 7 |" in text
    assert "| notes | notes.csv | your own | yours to know | 7 |" in text
    assert (
        "**Not for commercial use**, as the licence of its data says: financial_phrasebank (CC BY-NC" in text
    )
    assert (
        "Whoever trained it knows the licence of: notes.csv (your own)." in text
        and "twitter" not in (text.partition("## Licence note")[2])
    )
    assert "license: other" in text and "## Intended use and limits" in text
    assert "a 4-bit quantization (GGUF, Q4_1) of `HuggingFaceTB/SmolLM2-135M-Instruct`" in text
    card.put_export(tmp_path / "out", tmp_path, "merged", "f16", "smollm2-135m-instruct")
    exported = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers" in exported and "library_name: peft" not in exported
    assert (
        "merged into its base; weights in f16" in exported
        and "| sentiment | financial_phrasebank" in exported
    )
    own = shutil.copytree(random_adapter, tmp_path / "own")
    load_tokenizer(str(tiny_base)).save_pretrained(own)
    program = text.partition("```python\n")[2].partition("```")[0]
    assert '"BASE", "FOLDER"' in program
    program = program.replace('"BASE"', repr(str(tiny_base))).replace('"FOLDER"', repr(str(own)))
    found = {}
    exec(program, found)
    template = PromptTemplate(load_tokenizer(str(tiny_base)), 256)
    ids, _ = template.prompt_ids(known_tasks()["sentiment"], Record("TEXT"), 256)
    assert found["asked"]["input_ids"][0].tolist() == ids and len(found["answer"])
    assert card.for_hub(tmp_path / "out", {"data": {"tasks": tasks}}) == exported
