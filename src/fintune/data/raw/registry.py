"""The public datasets fintune can read: what they are, where they live, and their files' checksums."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fintune.data.records import Dropped
from fintune.errors import ConfigError
from fintune.tasks.base import Record

View = Literal["", "forecast", "nowcast"]


@dataclass(frozen=True)
class Origin:
    """A place a file is had from, pinned: a web address, or a file of a dataset on the hub."""

    url: str = ""
    hub: tuple[str, str, str] | None = None
    """Instead of `url`: the dataset's id on the hub, the full commit hash, the path in it."""
    sha256: str | None = None
    """The checksum of what comes; None where it is not known beforehand."""
    member: str = ""
    """The pattern of the one member to take, where an archive comes."""
    encoding: str = "utf-8-sig"
    """The member's encoding; it is stored as UTF-8."""

    @property
    def address(self) -> str:
        if self.hub is None:
            return self.url
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        repository, revision, path = self.hub
        return f"{endpoint}/datasets/{repository}/resolve/{revision}/{path}"


@dataclass(frozen=True)
class RawFile:
    """A file of a dataset, by its path below the data folder."""

    path: str
    sha256: str | None
    """The checksum of the file as it was when its reader was tested; None where no copy was at hand."""
    upstream: str | None = None
    """Its path in the dataset's repository; None for an archive of the whole repository."""
    others: tuple[Origin, ...] = ()
    """Where else it is had, tried in this order after the repository."""
    optional: bool = False
    """Read where it is found; the dataset is complete enough without it."""


@dataclass(frozen=True)
class Dataset:
    """A public dataset: what it is, and the reader that takes its files."""

    name: str
    title: str
    type: str
    """The type of the tasks it can serve."""
    licence: str
    home: str
    reader: str
    """`module:function` below `fintune.data.raw.readers`."""
    repository: str
    """The GitHub repository its files are downloaded from."""
    commit: str
    files: tuple[RawFile, ...]
    commercial: bool | None = None
    """Whether its licence allows commercial use; None where it does not say."""
    view: View = ""
    """forecast: the text was known before what it is asked for; nowcast: it may not have been."""
    labels: tuple[str, ...] = ()
    """Of a classification dataset."""

    def url(self, file: RawFile) -> str:
        """Where a file is had, pinned to a commit."""
        if file.upstream is None:
            return f"https://codeload.github.com/{self.repository}/tar.gz/{self.commit}"
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{file.upstream}"

    def origins(self, file: RawFile) -> list[Origin]:
        """The places of a file in the order they are tried.

        The repository is first: of its bytes the checksum is known. An archive that GitHub makes of a
        whole repository may be packed anew, so its checksum is not.
        """
        first = Origin(self.url(file), sha256=file.sha256 if file.upstream else None)
        return [*([first] if self.repository else []), *file.others]

    @property
    def paths(self) -> list[str]:
        """The files it cannot be read without."""
        return [file.path for file in self.files if not file.optional]

    def found(self, folder: Path) -> list[str]:
        """The files that are read: those it needs, and the optional ones that are there."""
        return [file.path for file in self.files if not file.optional or (folder / file.path).is_file()]

    def read(self, folder: Path) -> Iterator[Record | Dropped]:
        """The records of the files below a data folder."""
        module, function = self.reader.split(":")
        reader = getattr(importlib.import_module(f"fintune.data.raw.readers.{module}"), function)
        yield from reader(*(folder / path for path in self.found(folder)))


def _twitter_on_the_hub(name: str, sha256: str) -> Origin:
    """The same rows, with LF line ends."""
    home = "zeroshot/twitter-financial-news-sentiment"
    return Origin(hub=(home, "ccbe24de388e287beb92dd393a335c376b350ac3", name), sha256=sha256)


_ALL = (
    Dataset(
        name="financial_phrasebank",
        title="Financial PhraseBank (Malo et al., 2014), at least half of the annotators agreeing",
        type="classification",
        licence="CC BY-NC-SA 3.0",
        home="https://huggingface.co/datasets/takala/financial_phrasebank",
        reader="public:financial_phrasebank",
        repository="pkatwate/finBERT",
        commit="5ca5626",
        files=(
            RawFile(
                "financial_phrasebank/Sentences_50Agree.txt",
                "62bfa1a67f7b476a7e67fda3213d8d7f6890f5aaccdbc747c7555b94fc6cd171",
                "Sentences_50Agree.txt",
                others=(
                    Origin(
                        hub=(
                            "takala/financial_phrasebank",
                            "8d3fe0c36d5feec6b3cc5e455b0fcb4820fb9964",
                            "data/FinancialPhraseBank-v1.0.zip",
                        ),
                        sha256="0e1a06c4900fdae46091d031068601e3773ba067c7cecb5b0da1dcba5ce989a6",
                        member=r"Sentences_50Agree\.txt",
                        encoding="iso-8859-1",
                    ),
                ),
            ),
        ),
        commercial=False,
        labels=("positive", "negative", "neutral"),
    ),
    Dataset(
        name="twitter_financial_news",
        title="Twitter Financial News sentiment",
        type="classification",
        licence="MIT",
        home="https://huggingface.co/datasets/zeroshot/twitter-financial-news-sentiment",
        reader="public:twitter_financial_news",
        repository="umaima-aman/Twee_Sentiment_Analysis-DeepLearning",
        commit="0286b19",
        files=(
            RawFile(
                "twitter_financial_news/sent_train.csv",
                "184e6322b7f0e84c3103a83d198f1be8203de8b63a857f67a2964321b71c4e8d",
                "sent_train.csv",
                (
                    _twitter_on_the_hub(
                        "sent_train.csv", "71aa99d0d37feced03c999ec23b5b25302c92f39d69b6acb0a37aa076c5420e8"
                    ),
                ),
            ),
            RawFile(
                "twitter_financial_news/sent_valid.csv",
                "393572beac5064ed60c9f608a57dc66af2b41a91b89c149932d5c57f827e25da",
                "sent_valid.csv",
                (
                    _twitter_on_the_hub(
                        "sent_valid.csv", "31ea8274c98b52212daa68f2fb962811bf1913c1efe51b99765c8e2311806de6"
                    ),
                ),
            ),
        ),
        commercial=True,
        labels=("bullish", "bearish", "neutral"),
    ),
    Dataset(
        name="ectsum",
        title="ECTSum (Mukherjee et al., 2022): earnings calls and bullet points",
        type="summarization",
        licence="GPL-3.0 (its repository; copyleft)",
        home="https://github.com/rajdeep345/ECTSum",
        reader="ectsum:ectsum",
        repository="rajdeep345/ECTSum",
        commit="6909f1fc543104c1c60cf9de63e799f6620d1b0a",
        files=(
            RawFile(
                "ectsum.tar.gz",
                "a41b961362384566e80bc0123a7cb467dec3d89e75878ed9cd69467afcfd9759",
            ),
        ),
        commercial=True,
    ),
    Dataset(
        name="financial_qa_10k",
        title="Questions on 10-K reports",
        type="qa",
        licence="Apache-2.0",
        home="https://huggingface.co/datasets/virattt/financial-qa-10K",
        reader="public:financial_qa_10k",
        repository="ushashwat/Financial-QA-LLM",
        commit="d22e389b19efd8d4a1a3f6ad71a5cc5c85cac338",
        files=(
            RawFile(
                "financial_qa_10k/Financial-QA-10k.csv",
                "342385ae11a6facd1a6bffbc16927b6ca620d51d2b3ebc76649a68618328477e",
                "data/Financial-QA-10k.csv",
            ),
        ),
        commercial=True,
    ),
    Dataset(
        name="tatqa",
        title="TAT-QA (Zhu et al., 2021): questions on tables and text",
        type="qa",
        licence="CC BY 4.0",
        home="https://github.com/NExTplusplus/TAT-QA",
        reader="public:tatqa",
        repository="NExTplusplus/TAT-QA",
        commit="870accc41953dcde885aabeb963d94aabdc0fbc3",
        files=(
            RawFile(
                "tatqa/tatqa_dataset_dev.json",
                "8da095a819af6db3c14877c6df2d4d29960e41d1a63dd1fa853507bd2a616af5",
                "dataset_raw/tatqa_dataset_dev.json",
            ),
            *(
                RawFile(f"tatqa/{name}", None, f"dataset_raw/{name}", optional=True)
                for name in ("tatqa_dataset_train.json", "tatqa_dataset_test_gold.json")
            ),
        ),
        commercial=True,
    ),
    Dataset(
        name="fiqa_sa",
        title="FiQA 2018, task 1: sentiment scores of sentences for a target",
        type="regression",
        licence="research use, as the challenge states",
        home="https://huggingface.co/datasets/TheFinAI/fiqa-sentiment-classification",
        reader="public:fiqa_sa",
        repository="elinsky/fiqa",
        commit="0caa0fdb3a684c06bea2ba97d96b928d737c8146",
        files=(
            RawFile(
                "fiqa_sa/task1_headline_ABSA_train.json",
                "f19c87f9b6aed5a167c44e08660dbe0ad4655b4476d5bfc4065ff194c4395120",
                "data/task1_headline_ABSA_train.json",
            ),
            RawFile(
                "fiqa_sa/task1_headline_ABSA_test.json",
                "461258bb5aec13e9ed811cbe38def957c42b9e36a6c0ad51c9d8559e14d8f0f5",
                "data/task1_headline_ABSA_test.json",
            ),
            RawFile(
                "fiqa_sa/task1_post_ABSA_train.json",
                "54525e07d8d26f9666c0ea83dc3aa1f892ac4f4ea107d83ce24845190083444a",
                "data/task1_post_ABSA_train.json",
            ),
            RawFile(
                "fiqa_sa/task1_post_ABSA_test.json",
                "5d15e178608e5098772e375745c43328d12ee53c84870bce858f8f0eda62586c",
                "data/task1_post_ABSA_test.json",
            ),
        ),
        commercial=False,
    ),
    Dataset(
        name="stocknet",
        title="StockNet (Xu and Cohen, 2018), forecast: tweets on a stock, and the move that follows",
        type="regression",
        licence="MIT",
        home="https://github.com/yumoxu/stocknet-dataset",
        reader="stocknet:stocknet",
        repository="yumoxu/stocknet-dataset",
        commit="330708b5ddc359961078bef469f43f48992fd6e4",
        files=(
            RawFile(
                "stocknet.tar.gz",
                "69987b7548e1ec226c2a851aa004ec077634d6ad8c2a28555fd8f0c88a66f1d5",
            ),
        ),
        commercial=True,
        view="forecast",
    ),
)
_BY_NAME = {dataset.name: dataset for dataset in _ALL}
_FINQA = (
    Dataset(
        name="finqa",
        title="FinQA (Chen et al., 2021): questions that need a computation",
        type="qa",
        licence="MIT",
        home="https://github.com/czyssrs/FinQA",
        reader="finqa:finqa",
        repository="czyssrs/FinQA",
        commit="0f16e2867befa6840783e58be38c9efb9229d742",
        files=tuple(
            RawFile(f"finqa/{name}", None, f"dataset/{name}")
            for name in ("train.json", "dev.json", "test.json")
        ),
        commercial=True,
    ),
    Dataset(
        name="convfinqa",
        title="ConvFinQA (Chen et al., 2022): conversations of such questions",
        type="qa",
        licence="MIT",
        home="https://github.com/czyssrs/ConvFinQA",
        reader="finqa:convfinqa",
        repository="czyssrs/ConvFinQA",
        commit="cf3eed2d5984960bf06bb8145bcea5e80b0222a6",
        files=(RawFile("convfinqa/data.zip", None, "data.zip"),),
        commercial=True,
    ),
)
_OTHER_VIEWS = (
    replace(
        _BY_NAME["twitter_financial_news"],
        name="twitter_sentiment",
        title="Twitter Financial News as sentiment: bullish is positive, bearish negative",
        reader="public:twitter_sentiment",
        labels=("positive", "negative", "neutral"),
    ),
    replace(
        _BY_NAME["fiqa_sa"],
        name="fiqa_sentiment",
        title="FiQA 2018, task 1, as labels: negative below -0.1, positive from 0.1 on",
        type="classification",
        reader="public:fiqa_sentiment",
        labels=("positive", "negative", "neutral"),
    ),
    replace(
        _BY_NAME["stocknet"],
        name="stocknet_nowcast",
        title="StockNet, nowcast: tweets on a stock, and the move of the same session",
        reader="stocknet:stocknet_nowcast",
        view="nowcast",
    ),
    replace(
        _BY_NAME["stocknet"],
        name="stocknet_movement",
        title="StockNet, forecast as a label: up or down; small moves left out, as in the paper",
        type="classification",
        reader="stocknet:stocknet_movement",
        labels=("up", "down"),
    ),
)
"""The same files, read for another task."""
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (*_ALL, *_FINQA, *_OTHER_VIEWS)}

SAMPLE = "built-in sample"
"""What tables call the sample that fintune brings along."""

DEFAULTS = {
    "sentiment": "financial_phrasebank",
    "headline": "twitter_financial_news",
    "summarization": "ectsum",
    "qa": "financial_qa_10k",
    "regression": "stocknet",
}
"""The public dataset of each built-in task."""

COMMERCIAL_DEFAULTS = {"sentiment": "twitter_sentiment"}
"""What stands in for a built-in task's dataset that does not allow commercial use."""


def check_views(names: Iterable[str]) -> None:
    """Refuse a forecast beside a nowcast: their figures must never stand in one table.

    Args:
        names: the datasets of a recipe's tasks; names of other sources are passed over.

    Raises:
        ConfigError: there are two views among them.
    """
    first: dict[str, str] = {}
    for name in names:
        if name in DATASETS and (view := DATASETS[name].view):
            first.setdefault(view, name)
    if len(first) > 1:
        (one, name), (other, second) = list(first.items())[:2]
        raise ConfigError(
            f"data.tasks mixes two views: {name} is a {one}, {second} a {other}, and a table must not hold "
            "both: run each in a recipe of its own."
        )
