"""A plug-in's own type of task, whole: put the items of a text in order."""

from itertools import combinations, permutations

from fintune.metrics.measure import Measure, each
from fintune.tasks import Prediction, Task, register_type
from fintune.tasks.base import MISSING, softmax


def _agreement(task, record, prediction):
    """The share of pairs of items that stand in the expected order, 0 to 1."""
    wanted, got = record.target.split(" > "), prediction.value.split(" > ")
    pairs = list(combinations(wanted, 2))
    return sum(got.index(a) < got.index(b) for a, b in pairs) / len(pairs)


@register_type
class RankingTask(Task):
    """Answers such as `B > A > C`, chosen among all orders."""

    type = "ranking"
    decoding = "candidates"
    measures = (
        Measure("pairs", "pairs in order", each(_agreement)),
        Measure("best_first", "best first", each(lambda _, r, p: r.target[0] == p.value[0])),
        MISSING,
    )
    headline_metrics = ("pairs", "best_first")
    error_means = "an order with the wrong item first"
    verb = "Rank"

    def __init__(self, name, instruction, items):
        super().__init__(name, instruction)
        self.items = tuple(items)

    def read_target(self, value):
        order = [item.strip() for item in str(value).split(">")]
        if sorted(order) != sorted(self.items):
            raise ValueError(f"the target {value!r} is no order of {', '.join(self.items)}")
        return " > ".join(order)

    def candidates(self):
        return [" > ".join(order) for order in permutations(self.items)]

    def decide(self, log_likelihoods):
        shares = dict(zip(self.candidates(), softmax(log_likelihoods), strict=True))
        return Prediction(max(shares, key=shares.get), shares)

    def mistake(self, record, prediction):
        if prediction.value == record.target:
            return "", {}
        return ("wrong best" if prediction.value[0] != record.target[0] else "wrong order"), {}

    def is_error(self, records, predictions, train):
        return [r.target[0] != p.value[0] for r, p in zip(records, predictions, strict=True)]

    def answer_columns(self):
        return {"prediction": "text", "best": "text", "probability": "number"}

    def answer_cells(self, line):
        answer = line.get("prediction")
        shares = line.get("probabilities") or {}
        return {"prediction": answer, "best": answer and answer[0], "probability": shares.get(answer)}

    def to_dict(self):
        return {**super().to_dict(), "items": list(self.items)}
