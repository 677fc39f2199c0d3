"""Heads that are trained here, in minutes, on labelled text that packages carry."""
