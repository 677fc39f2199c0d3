"""Voices: text to speech, from Piper's graphs, from hibari's, and from transformers' `VitsModel`."""
