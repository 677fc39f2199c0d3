"""How a continuation is sampled, ended and reported. Knows no prompt and no call.

Ranges are the server's to check: it knows the model. What is None takes the model's own default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aimass.errors import InvalidRequest
from aimass.prompt import PromptRequest
from aimass.wire import refusing, set_fields

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "typical_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "allowed_token_ids",
)
_STOPPING_FIELDS = (
    "max_new_tokens",
    "min_new_tokens",
    "stop_strings",
    "stop_token_ids",
    "include_stop_string",
    "ignore_eos",
)
_GUIDANCE_FIELDS = ("json_schema", "json_object", "regex", "grammar")
_FORMS = (*_GUIDANCE_FIELDS, "choice")
_BEAM_FIELDS = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
_REQUEST_FIELDS = ("priority", "request_id", "num_sequences", "cache_salt", "adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How the next token is chosen, when the text ends, and what to send beside it."""

    temperature: float | None = None
    """0 takes the most probable token (greedy); above 0 divides the logits. Range 0 to 10."""
    top_k: int | None = None
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probability reaches p. Range: above 0, up to 1."""
    min_p: float | None = None
    """Drop tokens less probable than this share of the best one. Range: 0 up to, not including, 1."""
    repetition_penalty: float | None = None
    """Makes tokens seen before less probable when above 1. Range: above 0, up to 10."""
    seed: int | None = None
    """Makes the draw repeatable. The server chooses one, and returns it, when None."""
    typical_p: float | None = None
    """Keep the tokens whose surprise is nearest to the expected one. Range: above 0, up to 1."""
    frequency_penalty: float | None = None
    """Taken from a token's logit for each time it was generated. Range -2 to 2."""
    presence_penalty: float | None = None
    """Taken from a token's logit once it was generated. Range -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids. At most 1024, each from -100 to 100."""
    allowed_token_ids: Sequence[int] = ()
    """Choose only among these, and the tokens that end the text. At most 4096; empty allows all."""
    max_new_tokens: int | None = None
    """Most tokens to produce."""
    min_new_tokens: int | None = None
    """End-of-text and stop tokens are not chosen before this many."""
    stop_strings: Sequence[str] = ()
    """End when one of these appears; the text then ends before it. At most 16."""
    stop_token_ids: Sequence[int] = ()
    """End when one of these tokens is chosen. At most 64."""
    include_stop_string: bool = False
    """Keep the matched stop string at the end of the text."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    json_schema: str | None = None
    """Hold the text to a JSON document that satisfies this schema. Of the five, at most one is set."""
    json_object: bool | None = None
    """True holds the text to any JSON object."""
    regex: str | None = None
    """Hold the text to this regular expression, as a whole: Rust's syntax, without look-around."""
    choice: Sequence[str] | None = None
    """Let the text be one of these. At most 1024."""
    grammar: str | None = None
    """Hold the text to this grammar, in Lark's syntax as llguidance reads it."""
    wants_token_ids: bool = False
    """Ask for the token ids of the continuation."""
    wants_logprobs: bool = False
    """Ask for the log-probability of each token."""
    num_top_logprobs: int = 0
    """With `wants_logprobs`, also ask for this many most probable tokens at each place. At most 20."""
    wants_prompt_token_ids: bool = False
    """Ask for the token ids of the prompt."""
    wants_prompt_logprobs: bool = False
    """Ask for the log-probability of each token of the prompt but the first."""
    num_beams: int | None = None
    """Write this many texts side by side and give the best, whole. Range 1 to 16; 1 is greedy."""
    length_penalty: float | None = None
    """Above 0 favours long texts among the beams. Range -10 to 10."""
    early_stopping: bool | None = None
    """End the search as soon as there are as many texts as beams."""
    no_repeat_ngram_size: int | None = None
    """No run of this many tokens occurs twice; 0 allows all. Range 0 to 64."""
    priority: int | None = None
    """A higher number is served earlier. Range -100 to 100."""
    time_limit_s: float | None = None
    """End the text after this time at the server and keep what there is. Unlike a deadline it is no error."""
    num_sequences: int | None = None
    """Continue the prompt this many times, side by side. Range 1 to 16; above 1 only with a temperature."""
    cache_salt: str | None = None
    """Only prompts with the same salt share what the server computed of them. At most 256 characters."""
    adapter: str | None = None
    """Name of one of the model's adapters to compute with; None computes with the base model alone."""
    request_id: str | None = None
    """The caller's name for the request in logs and traces."""

    def fill(self, request: PromptRequest) -> None:
        """Set the request's options; raise `InvalidRequest` when a value fits no field."""
        set_fields(request.sampling, self, _SAMPLING_FIELDS, path="sampling.")
        set_fields(request.stopping, self, _STOPPING_FIELDS, path="stopping.")
        set_fields(request, self, _REQUEST_FIELDS)
        set_fields(request.beams, self, _BEAM_FIELDS, path="beams.")
        self._fill_guidance(request)
        request.output.token_ids = self.wants_token_ids
        request.output.logprobs = self.wants_logprobs
        request.output.prompt_token_ids = self.wants_prompt_token_ids
        request.output.prompt_logprobs = self.wants_prompt_logprobs
        with refusing("output.top_logprobs"):
            request.output.top_logprobs = self.num_top_logprobs
        if self.time_limit_s is not None:
            with refusing("time_limit"):
                request.time_limit.FromNanoseconds(round(self.time_limit_s * 1e9))

    def _fill_guidance(self, request: PromptRequest) -> None:
        """Set the form the text is held to. A second one would silently replace the first in the message."""
        given = [form for form in _FORMS if getattr(self, form) is not None]
        if len(given) > 1:
            raise InvalidRequest.of_field("guidance", f"expected one form of text, got {' and '.join(given)}")
        set_fields(request.guidance, self, _GUIDANCE_FIELDS, path="guidance.")
        if self.choice is not None:
            request.guidance.choice.SetInParent()  # No texts are the server's to refuse, not to be ignored.
            with refusing("guidance.choice.texts"):
                request.guidance.choice.texts.extend(self.choice)
