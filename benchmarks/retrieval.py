"""Whether the passage that holds an answer is among those that are read: recall at k, and within a token budget.

    python benchmarks/retrieval.py --data_dir DIR

- financial-qa-10k: all contexts of a company, as one document, are cut into passages; a question's passage is
  the one that holds its context. Questions of other companies have no answer there.
- the filings: questions of our own (`FILING_QUESTIONS`), each with a figure or words of its answer.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fintune.data.documents.passages import Block, Passage, passages
from fintune.data.documents.reading import documents
from fintune.inference.documents import FOUND, ranked
from fintune.models.base import load_tokenizer

SIZES = (50, 100, 200)
BUDGETS = (256, 512, 900, 1900)
TOP = (1, 3, 5, 10)
