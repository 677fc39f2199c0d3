"""What an operator may choose about text generation. Reads no environment by itself."""

from __future__ import annotations

from dataclasses import dataclass

from aimass_serving.errors import BadConfig


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Limits of the text side of one model. Variables: `AIMASS_GENERATION_<FIELD>`."""

    default_max_new_tokens: int = 512
    """Most tokens to produce when neither the request nor the model says."""
    num_tokenizer_threads: int = 2
    """Prompts that are tokenised at once; more wait."""
    max_waiting_prompts: int = 256
    """Prompts that may wait to be tokenised; more are refused with OVERLOADED."""
    overload_retry_after_s: float = 1.0
    """When a caller who was refused so is told to come back."""

    def __post_init__(self) -> None:
        """Refuse values that would serve nobody."""
        for name in ("default_max_new_tokens", "num_tokenizer_threads", "max_waiting_prompts"):
            if getattr(self, name) < 1:
                raise BadConfig(name, expected="at least 1", got=getattr(self, name))
