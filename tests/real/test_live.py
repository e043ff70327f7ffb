"""Realised moves as the live scorecard joins them are the targets of the training data."""

import os
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fintune.data.raw.readers.stocknet import stocknet
from fintune.live.market import FolderPrices, move_after
from fintune.tasks import Record

ARCHIVE = Path(os.environ.get("FINTUNE_DATA_DIR") or "/nowhere") / "stocknet.tar.gz"
pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason="FINTUNE_DATA_DIR holds no stocknet.tar.gz")


def test_an_answer_in_a_session_is_held_against_stocknets_own_target(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            name = Path(member.name)
            if name.suffix == ".csv" and name.parent.name == "raw" and name.stem in ("AAPL", "GE", "XOM"):
                (tmp_path / name.name).write_bytes(archive.extractfile(member).read())
    prices = FolderPrices(tmp_path)
    records = [r for r in stocknet(ARCHIVE) if isinstance(r, Record)]
    checked = 0
    for record in records:
        symbol = record.id.rpartition(":")[2].partition("/")[0]
        if symbol not in ("AAPL", "GE", "XOM"):
            continue
        known = datetime.fromisoformat(record.time) - timedelta(seconds=1)
        first = known.date() - timedelta(days=1)
        closes = prices.closes(symbol, first, first + timedelta(days=15))
        move = move_after(known, closes, datetime(2020, 1, 1, tzinfo=UTC))
        assert move is not None and move.percent == pytest.approx(record.target, abs=1e-9), record.id
        checked += 1
    assert checked > 1000
