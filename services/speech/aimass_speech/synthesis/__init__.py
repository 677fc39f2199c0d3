"""Text to speech: text, SSML or phonemes in; audio in pieces out, the first one soon."""
