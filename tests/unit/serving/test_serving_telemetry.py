"""Spans and measurements, and that none are made where nobody asked."""

import pytest
from aimass_serving import telemetry
from aimass_serving.errors import BadConfig
from aimass_serving.telemetry import GenAiMeasurement, configure_telemetry
from aimass_serving.testing import recorded_telemetry
from opentelemetry import trace


def test_nothing_is_configured_without_variables() -> None:
    configure_telemetry("aimass-test", {})
    assert not telemetry.is_tracing()
    telemetry.emit_phase("prefill", 1, 2)
    telemetry.record_gen_ai(GenAiMeasurement("chat", "m", 1.0))
    telemetry.record_call("a/B", status_code="OK", duration_s=1, error_type=None)
    assert (
        telemetry.start_server_span("a/B", parent=telemetry.current_context(), start_ns=1)
        is trace.INVALID_SPAN
    )


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "OTEL_METRICS_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTLP_PROTOCOL"),
    ],
)
def test_exporter_that_is_not_supported_is_refused(environ: dict[str, str], setting: str) -> None:
    with pytest.raises(BadConfig, match=setting):
        configure_telemetry("aimass-test", environ)


def test_disabled_sdk_stays_off() -> None:
    configure_telemetry("aimass-test", {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "zipkin"})
    assert not telemetry.is_tracing()


def test_phase_is_a_child_of_the_given_span_with_its_own_times() -> None:
    with recorded_telemetry() as recording:
        parent = recording.tracer_provider.get_tracer("t").start_span("server")
        context = trace.set_span_in_context(parent)
        link = trace.Link(parent.get_span_context())
        telemetry.emit_phase("prefill", 100, 250, attributes={"tokens": 3}, links=[link], context=context)
        telemetry.emit_phase("backwards", 100, 50, context=context)
        parent.end()
        [prefill] = recording.named("prefill")
        assert prefill.parent is not None
        assert prefill.parent.span_id == parent.get_span_context().span_id
        assert (prefill.start_time, prefill.end_time) == (100, 250)
        assert prefill.attributes == {"tokens": 3}
        assert len(prefill.links) == 1
        [backwards] = recording.named("backwards")
        assert (backwards.start_time, backwards.end_time) == (100, 100)


def test_the_release_of_a_slot_is_measured_by_model() -> None:
    with recorded_telemetry() as recording:
        telemetry.record_release(3.0, model="m")
        [point] = recording.points("aimass.sequence.release.duration")
        assert (point.sum, point.attributes) == (0.003, {"gen_ai.request.model": "m"})


def test_model_requests_fill_the_histograms_of_the_conventions() -> None:
    with recorded_telemetry() as recording:
        telemetry.record_gen_ai(
            GenAiMeasurement("chat", "m", 2.0, time_to_first_token_s=0.3, time_per_output_token_s=0.02)
        )
        telemetry.record_gen_ai(GenAiMeasurement("chat", "m", 0.1, error_type="CANCELLED"))
        [first] = recording.points("gen_ai.server.time_to_first_token")
        assert first.sum == 0.3
        assert first.explicit_bounds == telemetry.TIME_TO_FIRST_TOKEN_BUCKETS
        [per_token] = recording.points("gen_ai.server.time_per_output_token")
        assert per_token.explicit_bounds == telemetry.TIME_PER_OUTPUT_TOKEN_BUCKETS
        durations = recording.points("gen_ai.server.request.duration")
        assert {point.attributes.get("error.type") for point in durations} == {None, "CANCELLED"}
        assert durations[0].explicit_bounds[0] == 0.01
        assert durations[0].explicit_bounds[-1] == 81.92
