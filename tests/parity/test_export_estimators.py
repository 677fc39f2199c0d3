"""scikit-learn estimators through the export, which holds each to scikit-learn; files that are refused."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from aimass.cli.application import app
from aimass.model.v1.features_spec_pb2 import FEATURES_TASK_REGRESSOR
from aimass_exporters.cli import register
from aimass_exporters.errors import (
    InvalidExportOption,
    ParityFailed,
    UnsupportedModel,
    UntrustedEstimator,
)
from aimass_exporters.tables.estimator_bundle import export_estimator
from aimass_exporters.tables.estimator_file import export_file, read_estimator
from aimass_serving.bundle import read_bundle
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

CLASSIFIERS = [
    make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    RandomForestClassifier(20, random_state=0),
    GradientBoostingClassifier(n_estimators=10, random_state=0),
    make_pipeline(StandardScaler(), KNeighborsClassifier()),
]
REGRESSORS = [make_pipeline(StandardScaler(), Ridge()), RandomForestRegressor(20, random_state=0)]


def measures(bundle: Path) -> dict[str, float]:
    return {m.name: m.value for m in read_bundle(bundle).manifest.parity.measures}


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda model: str(model)[:30])
def test_a_classifier_agrees_with_scikit_learn_on_labelled_rows(classifier: Any, tmp_path: Path) -> None:
    data = load_wine()
    classifier.fit(data.data[::2], data.target[::2])
    bundle = export_estimator(
        classifier, data.data[1::2], targets=data.target[1::2], store=tmp_path, name="wine"
    )
    found = measures(bundle)
    assert found["label_agreement"] >= 0.99
    assert found["accuracy"] == pytest.approx(classifier.score(data.data[1::2], data.target[1::2]), abs=0.012)


@pytest.mark.parametrize("regressor", REGRESSORS, ids=lambda model: str(model)[:30])
def test_a_regressor_and_a_clusterer_agree_with_scikit_learn(regressor: Any, tmp_path: Path) -> None:
    data = load_diabetes()
    regressor.fit(data.data, data.target)
    bundle = export_estimator(
        regressor, data.data, columns=data.feature_names, store=tmp_path, name="diabetes"
    )
    features = read_bundle(bundle).manifest.features
    assert features.task == FEATURES_TASK_REGRESSOR
    assert [column.name for column in features.columns] == data.feature_names
    scaled = StandardScaler().fit_transform(load_breast_cancer().data)
    clusters = KMeans(4, n_init=1, random_state=0).fit(scaled)
    assert (
        measures(export_estimator(clusters, scaled, store=tmp_path, name="clusters"))["share_within_0.0001"]
        == 1
    )


class Unknown(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A step that the converter does not know."""

    def fit(self, X: Any, y: Any = None) -> Unknown:  # noqa: N803 - scikit-learn's name
        self.is_fitted_ = True
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803 - as above
        return X


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    rows, targets = load_wine(return_X_y=True)
    cases: list[tuple[Any, Any, str]] = [
        (LogisticRegression(), UnsupportedModel, "no fitted estimator"),
        (LinearSVC().fit(rows / 100, targets), UnsupportedModel, "gives no probabilities"),
        (DBSCAN().fit(rows), UnsupportedModel, "that can predict"),
        (StandardScaler().fit(rows), UnsupportedModel, "no classifier"),
        (make_pipeline(Unknown(), Ridge()).fit(rows, targets), UnsupportedModel, "skl2onnx cannot convert"),
    ]
    for estimator, error, message in cases:
        with pytest.raises(error, match=message):
            export_estimator(estimator, rows, store=tmp_path / "store", name="x")
    ridge = Ridge().fit(rows, targets)
    with pytest.raises(InvalidExportOption, match="at least 10 rows"):
        export_estimator(ridge, rows[:5], store=tmp_path / "store", name="x")
    with pytest.raises(InvalidExportOption, match="columns: expected 13 different names"):
        export_estimator(ridge, rows, columns=["a"], store=tmp_path / "store", name="x")
    assert not (tmp_path / "store").exists()


def test_a_graph_that_does_not_agree_is_not_written(tmp_path: Path) -> None:
    """Numbers beyond float32's precision, and a tree's branch for missing ones, which the converter drops."""
    gaps, targets = load_wine(return_X_y=True)
    gaps[::3, 12] = np.nan
    tree = DecisionTreeClassifier(max_depth=3, random_state=0).fit(gaps, targets)
    with pytest.raises(ParityFailed, match="label_agreement"):
        export_estimator(tree, gaps, store=tmp_path, name="x")
    rows = (2.0**24 + np.arange(40))[:, None]
    nearest = KNeighborsClassifier(1).fit(rows, np.arange(40) % 2)
    with pytest.raises(ParityFailed, match="label_agreement"):
        export_estimator(nearest, rows, store=tmp_path, name="x")
    assert not list(tmp_path.iterdir())


def test_the_command_reads_skops_files_and_refuses_what_can_run_code(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    data = load_wine(as_frame=False)
    estimator = CLASSIFIERS[0].fit(data.data, data.target)
    file, rows = tmp_path / "wine.skops", tmp_path / "rows.csv"
    skops.io.dump(estimator, file)
    with rows.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*data.feature_names, "kind"])
        writer.writerows(
            [*map(repr, row.tolist()), target] for row, target in zip(data.data, data.target, strict=True)
        )
    if not any(command.name == "export-estimator" for command in app.registered_commands):
        register(app)
    arguments = [
        "export-estimator",
        str(file),
        "--rows",
        str(rows),
        "--target",
        "kind",
        "--store",
        str(tmp_path / "s"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert '"accuracy"' in result.stdout
    (tmp_path / "wine.pkl").write_bytes(pickle.dumps(estimator))
    with pytest.raises(InvalidExportOption, match="a pickle can run code"):
        read_estimator(tmp_path / "wine.pkl")
    skops.io.dump(make_pipeline(FunctionTransformer(Unknown), Ridge()), tmp_path / "own.skops")
    with pytest.raises(UntrustedEstimator, match="Unknown"):
        read_estimator(tmp_path / "own.skops")
    with pytest.raises(InvalidExportOption, match="--target: expected one of"):
        export_file(file, rows=rows, target="none", trusted=(), store=tmp_path / "s")
