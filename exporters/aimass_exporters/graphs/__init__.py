"""ONNX graphs: how models are traced, packed and quantised. Knows no model family by name."""
