"""scikit-learn estimators: their graphs, their files, and their bundles."""
