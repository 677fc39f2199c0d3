"""Turns fine-tuned PyTorch models into optimised, verified ONNX bundles. Runs offline; no service imports
it.
"""
