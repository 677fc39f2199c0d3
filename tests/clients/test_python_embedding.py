"""The embedding, model and health clients against fakes, over real gRPC."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from aimass import (
    Connection,
    ConnectionOptions,
    EmbeddingClient,
    EmbeddingOptions,
    HealthStatus,
    ModelClient,
    ModelState,
    TextRefused,
    Truncation,
    health,
)
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.errors import InvalidRequest, ModelNotFound, Overloaded, RpcError
from aimass.model.v1 import manifest_pb2, model_service_pb2
from aimass.testing import (
    Fail,
    FakeEmbeddingService,
    FakeHealthService,
    FakeModelService,
    Hang,
    error_result,
    letters_vector,
    ready_model,
    running_fakes,
    stream_answer,
    vector_result,
)
from grpc_health.v1 import health_pb2


@contextmanager
def client_of(fake: FakeEmbeddingService) -> Iterator[EmbeddingClient]:
    with running_fakes(fake) as address, EmbeddingClient(address) as client:
        yield client


def test_vectors_come_back_in_the_order_of_the_texts() -> None:
    texts = ["ab", "zz", "abc"]
    with client_of(FakeEmbeddingService()) as client:
        embeddings = client.embed(texts, model="m")

    assert embeddings.vectors.dtype == np.float32
    assert np.array_equal(embeddings.require_all(), np.stack([letters_vector(t) for t in texts]))
    assert embeddings.tokens == (2, 2, 2)


def test_one_string_is_one_text_and_not_its_letters() -> None:
    with client_of(FakeEmbeddingService()) as client:
        assert client.embed("abc", model="m").vectors.shape == (1, 26)


def test_one_bad_text_fails_alone() -> None:
    vector = np.array([0.0, 1.0], np.float32)
    response = pb.EmbedResponse(
        results=[vector_result(vector), error_result("INPUT_TOO_LONG", "too long")],
        dimensions=2,
        dtype=pb.VECTOR_DTYPE_FLOAT32,
    )
    with client_of(FakeEmbeddingService(embed=[[response]])) as client:
        embeddings = client.embed(["fits", "does not"], model="m")

    assert np.array_equal(embeddings.vectors[0], vector)
    assert np.isnan(embeddings.vectors[1]).all()
    assert embeddings.errors[1].reason == "INPUT_TOO_LONG"
    with pytest.raises(TextRefused, match=r"texts\[1\]: INPUT_TOO_LONG"):
        embeddings.require_all()


def test_options_reach_the_service() -> None:
    fake = FakeEmbeddingService()
    with client_of(fake) as client:
        client.embed(["a"], model="m", options=EmbeddingOptions(dimensions=4, truncation=Truncation.START))

    (request,) = fake.calls[0].requests
    assert isinstance(request, pb.EmbedRequest)
    assert (request.options.dimensions, request.options.truncation) == (4, pb.TRUNCATION_START)


def test_a_text_that_is_not_unicode_is_refused_by_its_place() -> None:
    with client_of(FakeEmbeddingService()) as client, pytest.raises(InvalidRequest) as refused:
        client.embed(["fine", "\udc80"], model="m")

    assert refused.value.violations[0].field == "texts[1]"


def test_a_stream_answers_texts_as_they_come() -> None:
    texts = ["ab", "zz", "abc"]
    with client_of(FakeEmbeddingService()) as client, client.embed_stream(iter(texts), model="m") as stream:
        answers = list(stream)

    assert [answer.index for answer in answers] == [0, 1, 2]
    assert np.array_equal(answers[1].require(), letters_vector("zz"))


def test_a_bad_text_of_a_stream_fails_alone() -> None:
    bad = pb.EmbedStreamResponse(index=0, result=error_result("INVALID_FIELD", "empty"))
    script = [bad, stream_answer(1, np.ones(2, np.float32))]
    with (
        client_of(FakeEmbeddingService(embed_stream=[script])) as client,
        client.embed_stream(["", "x"], model="m") as stream,
    ):
        first, second = stream

    with pytest.raises(TextRefused):
        first.require()
    assert second.require().tolist() == [1.0, 1.0]


def test_a_stream_of_texts_lasts_as_long_as_it_sends_unless_told_otherwise() -> None:
    fake = FakeEmbeddingService()
    options = ConnectionOptions(stream_deadline_s=5)
    with running_fakes(fake) as address, EmbeddingClient(address, options) as client:
        for deadline_s in (None, 30):
            with client.embed_stream(["a"], model="m", deadline_s=deadline_s) as stream:
                list(stream)

    unlimited, limited = (call.deadline_s or 0 for call in fake.calls)
    assert unlimited > 1e9, "gRPC's way to say that there is none"
    assert 20 < limited <= 31


def test_leaving_an_endless_stream_early_cancels_the_call() -> None:
    fake = FakeEmbeddingService()
    with client_of(fake) as client:
        with client.embed_stream(itertools.repeat("again"), model="m") as stream:
            assert next(stream).index == 0

        assert fake.calls[0].was_cancelled


def test_overload_of_the_encoder_is_told() -> None:
    full = Fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=2)
    with client_of(FakeEmbeddingService(embed=[[full]])) as client, pytest.raises(Overloaded):
        client.embed(["a"], model="m")


def test_a_unary_call_that_is_past_its_deadline_ends_at_the_service() -> None:
    fake = FakeEmbeddingService(embed=[[Hang()]])
    with client_of(fake) as client:
        with pytest.raises(RpcError):
            client.embed(["a"], model="m", deadline_s=0.1)

        assert fake.calls[0].was_cancelled


def test_models_are_described() -> None:
    model = ready_model("tiny")
    measure = model.parity.measures.add(name="cosine_min", value=0.9999, bound=0.999, num_samples=8)
    measure.comparison = manifest_pb2.ParityMeasure.COMPARISON_AT_LEAST
    broken = model_service_pb2.Model(name="broken", state=model_service_pb2.MODEL_STATE_FAILED)
    with running_fakes(FakeModelService([model, broken])) as address, ModelClient(address) as client:
        first, second = client.list()

        assert (first.task, first.precision, first.is_ready) == ("text_generation", "fp32", True)
        assert first.parity[0].comparison == "at_least"
        assert second.state is ModelState.FAILED
        assert client.get("tiny@1") == first
        with pytest.raises(ModelNotFound):
            client.get("other")


def test_health_is_what_the_service_says() -> None:
    fake = FakeHealthService()
    with running_fakes(fake) as address:
        assert health(address) is HealthStatus.SERVING
        fake.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with Connection(address) as connection:
            assert health(connection) is HealthStatus.NOT_SERVING
            with pytest.raises(RpcError) as raised:
                health(connection, service="nobody")
        assert raised.value.code is grpc.StatusCode.NOT_FOUND


def test_clients_share_a_connection_that_outlives_them() -> None:
    with (
        running_fakes(FakeModelService([ready_model("m")]), FakeEmbeddingService()) as address,
        Connection(address) as connection,
    ):
        with ModelClient(connection) as models:
            assert models.address == address
        assert EmbeddingClient(connection).embed(["a"], model="m").vectors.shape == (1, 26)
