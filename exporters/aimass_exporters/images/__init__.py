"""Image classifiers: definitions, sources, and their bundles."""
