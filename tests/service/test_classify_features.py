"""Models of tables over the wire, scikit-learn as the oracle: numbers, texts, both; and bad rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass import ClassificationClient, EstimatorKind, FeatureAnswers, FeatureOptions, ItemError
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_exporters.tables.estimator_bundle import export_estimator
from aimass_serving.testing import running_service
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

IRIS = load_iris()
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
REVIEWS = {
    "A wonderful film with great actors": "good",
    "Great fun and a wonderful story": "good",
    "Boring, a terrible waste of time": "bad",
    "Terrible actors and a boring story": "bad",
}
RENTS = [[30.0, "North"], [60.0, "South"], [45.0, "North"], [80.0, "South"], [52.0, "West"]] * 4


def with_gaps(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same rows, every fifth without the third number."""
    gaps = rows.copy()
    gaps[::5, 2] = np.nan
    return gaps


@pytest.fixture(scope="module")
def estimators() -> dict[str, Any]:
    names = IRIS.target_names[IRIS.target]
    rents = np.array(RENTS, object)
    by_column = ColumnTransformer([("size", StandardScaler(), [0]), ("place", OneHotEncoder(), [1])])
    return {
        "iris": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(IRIS.data, names),
        "iris-missing": make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500)).fit(
            with_gaps(IRIS.data), names
        ),
        "iris-clusters": KMeans(3, n_init=3, random_state=0).fit(IRIS.data),
        "reviews": make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(
            list(REVIEWS), list(REVIEWS.values())
        ),
        "rents": make_pipeline(by_column, LinearRegression()).fit(rents, np.arange(20) % 5 * 100.0),
    }


@pytest.fixture(scope="module")
def store(estimators: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    rows = {
        "iris": IRIS.data,
        "iris-missing": with_gaps(IRIS.data),
        "iris-clusters": IRIS.data,
        "reviews": np.array(list(REVIEWS) * 5, object),
        "rents": np.array(RENTS, object),
    }
    for name, table in rows.items():
        columns = COLUMNS if name.startswith("iris") else None
        export_estimator(estimators[name], table, store=store, name=name, columns=columns)
    return store


@pytest.fixture
async def address(store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, store) as service:
        yield service.address


async def ask(
    address: str, model: str, rows: Sequence[Sequence[Any]], columns: Sequence[str] = (), **options: Any
) -> FeatureAnswers:
    def call() -> FeatureAnswers:
        with ClassificationClient(address) as client:
            return client.classify_features(
                rows, model=model, columns=columns, options=FeatureOptions(**options), deadline_s=60
            )

    return await asyncio.to_thread(call)


async def test_flowers_have_the_probabilities_of_scikit_learn(
    address: str, estimators: dict[str, Any]
) -> None:
    found = await ask(address, "iris", IRIS.data.tolist(), top_k=3)
    expected = estimators["iris"].predict_proba(IRIS.data)
    for answer, row in zip(found.require_all(), expected, strict=True):
        scores = {label.index: label.score for label in answer.labels}
        np.testing.assert_allclose([scores[i] for i in range(3)], row, atol=1e-5)
    best = [answer.labels[0].label for answer in found.require_all()]
    assert np.mean(np.array(best) == IRIS.target_names[IRIS.target]) > 0.95
    assert (found.kind, list(found.columns)) == (EstimatorKind.CLASSIFIER, COLUMNS)


async def test_columns_may_come_in_any_order(address: str) -> None:
    order = [3, 0, 2, 1]
    rows = IRIS.data[[0, 75, 149]]
    mixed = await ask(address, "iris", rows[:, order].tolist(), [COLUMNS[i] for i in order])
    assert mixed.results == (await ask(address, "iris", rows.tolist())).results


async def test_clusters_texts_and_mixed_tables_are_as_in_scikit_learn(
    address: str, estimators: dict[str, Any]
) -> None:
    clusters = (await ask(address, "iris-clusters", IRIS.data.tolist())).require_all()
    assert [answer.cluster for answer in clusters] == estimators["iris-clusters"].predict(IRIS.data).tolist()
    texts = ["What a WONDERFUL story", "terrible, simply terrible"]
    reviews = (await ask(address, "reviews", [[text] for text in texts], top_k=2)).require_all()
    assert [answer.labels[0].label for answer in reviews] == ["good", "bad"]
    expected = estimators["reviews"].predict_proba(texts).max(axis=1)
    np.testing.assert_allclose([answer.labels[0].score for answer in reviews], expected, atol=1e-5)
    rents = await ask(address, "rents", RENTS[:5])
    assert rents.kind is EstimatorKind.REGRESSOR
    values = [answer.values[0] for answer in rents.require_all()]
    np.testing.assert_allclose(values, estimators["rents"].predict(np.array(RENTS[:5], object)), atol=1e-2)


async def test_a_model_that_was_measured_with_missing_numbers_takes_them(
    address: str, estimators: dict[str, Any]
) -> None:
    rows = with_gaps(IRIS.data)
    found = (await ask(address, "iris-missing", rows.tolist())).require_all()
    assert [answer.labels[0].label for answer in found] == estimators["iris-missing"].predict(rows).tolist()


async def test_bad_rows_fail_alone_and_name_their_column(address: str) -> None:
    good = IRIS.data[0].tolist()
    nan, text, large = [*good[:2], float("nan"), good[3]], [good[0], "wide", *good[2:]], [*good[:3], 1e300]
    found = await ask(address, "iris", [good, nan, good[:3], text, large, [*good, 1.0], good])
    errors = {i: r for i, r in enumerate(found.results) if isinstance(r, ItemError)}
    assert {i: error.violations[0].field for i, error in errors.items()} == {
        1: "rows[1].values[2]",
        2: "rows[2].values",
        3: "rows[3].values[1]",
        4: "rows[4].values[3]",
        5: "rows[5].values",
    }
    assert "'petal length'" in errors[1].message
    assert "expected 4 values" in errors[2].message
    assert found.results[0] == found.results[6]


async def test_unknown_columns_and_labels_fail_the_call(address: str) -> None:
    row = [IRIS.data[0].tolist()]
    with pytest.raises(InvalidRequest, match=r"columns\[1\]: expected one of sepal length"):
        await ask(address, "iris", row, ["sepal length", "colour", *COLUMNS[2:]])
    with pytest.raises(InvalidRequest, match="columns: expected all 4 columns, also petal width"):
        await ask(address, "iris", row, COLUMNS[:3])
    with pytest.raises(InvalidRequest, match=r"options\.labels\[0\]: expected one of setosa"):
        await ask(address, "iris", row, labels=("rose",))
    with pytest.raises(InvalidRequest, match="rows: expected at least one row"):
        await ask(address, "iris", [])
    with pytest.raises(InvalidRequest, match="rows: expected at most 16384 rows"):
        await ask(address, "iris", row * 100_000)
