"""What Prometheus reads, parsed back by its own client."""

from prometheus_client.parser import text_string_to_metric_families

from fintune.monitoring.metrics import Metrics
from fintune.tasks import Prediction


def samples(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_request_is_counted_by_outcome_label_confidence_and_tokens():
    metrics = Metrics()
    answer = Prediction("negative", {"positive": 0.2, "negative": 0.8})
    metrics.observe_request(
        "sentiment", 0.2, prediction=answer, input_tokens=50, cached_tokens=30, queue_seconds=0.01
    )
    metrics.observe_request("sentiment", 3.0, "overloaded")
    metrics.observe_batch("sentiment", 5, 0.1)
    seen = samples(metrics)
    assert seen["fintune_requests_total", "ok", "sentiment"] == 1
    assert seen["fintune_requests_total", "overloaded", "sentiment"] == 1
    assert seen["fintune_request_seconds_count", "sentiment"] == 1  # refusals are quick, and no latency
    assert seen["fintune_answers_total", "negative", "sentiment"] == 1
    assert seen["fintune_confidence_sum", "sentiment"] == 0.8
    assert seen["fintune_tokens_total", "prompt", "sentiment"] == 50
    assert seen["fintune_tokens_total", "cached", "sentiment"] == 30
    assert seen["fintune_batch_size_sum", "sentiment"] == 5


def test_an_answer_in_free_text_never_becomes_a_label():
    metrics = Metrics()
    metrics.observe_request("qa", 0.1, prediction=Prediction("a secret of the client"))
    metrics.observe_request("regression", 0.1, prediction=Prediction(1.25, {"-1.0": 0.4, "+2.0": 0.6}))
    assert b"secret" not in metrics.render()
    seen = samples(metrics)
    assert seen["fintune_predicted_value_bucket", "2.0", "regression"] == 1
    assert seen["fintune_predicted_value_bucket", "1.0", "regression"] == 0
    assert not any(name[0] == "fintune_answers_total" for name in seen)
