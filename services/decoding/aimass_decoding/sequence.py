"""One request on its way through the engine. Knows neither the model nor the caller's side."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto

from aimass_decoding.drafts import Drafter, Guesses
from aimass_decoding.masks import MaskFeed
from aimass_decoding.outlet import Outlet
from aimass_decoding.request import SequenceRequest, SequenceTimings, TokenLogprob
from aimass_decoding.sampler import SamplingState


class Stage(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    """No slot yet."""
    PREFILLING = auto()
    """Has a slot; part of its prompt is still to be computed."""
    DECODING = auto()
    """Gains one token a step."""
    DONE = auto()
    """Finished, failed or abandoned: it holds nothing any more."""


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request. Owned by the engine thread once it was submitted."""

    request: SequenceRequest
    number: int
    """Order of arrival."""
    arrival_s: float
    submitted_ns: int
    sampling: SamplingState
    scope: Hashable = None
    """Its prompt may be shared with those of sequences of the same scope; None shares nothing."""
    group: int | None = None
    """Number of the first sequence of its request, when the request asked for several."""
    index: int = 0
    """Its place among the sequences of its request. Those after the first expect to share its prompt."""
    stage: Stage = Stage.WAITING
    slot: int = 0
    """Row of the cache; means nothing while WAITING or DONE."""
    num_expected_reuse: int = 0
    """Prompt tokens that others' slots held when it arrived."""
    num_reused: int = 0
    """Prompt tokens that were copied instead of computed."""
    num_cached: int = 0
    """Tokens whose keys and values are in the slot."""
    last_token: int = 0
    """The token chosen last, which the next decode step feeds; means nothing before the first."""
    num_output: int = 0
    """Tokens chosen so far, one that ends the sequence included."""
    entered_s: float = 0.0
    """When it got its slot; means nothing before that."""
    last_progress_s: float = 0.0
    """When its last chunk or token was computed; its arrival before that."""
    first_token_s: float = math.inf
    """When its first token came; infinity before that."""
    masks: MaskFeed | None = None
    """What its next token may be; None for anything."""
    drafter: Drafter | None = None
    """Guesses its next tokens from its text; None where nobody should."""
    guesses: Guesses | None = None
    """What a draft graph guesses of its next tokens; None without one."""
    outlet: Outlet | None = None
    """Where its tokens go. Belongs to the caller's event loop, but for its `loop`."""
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens computed so far but the first, when the request asks for them."""
    prefill_ns: int = 0
    first_token_ns: int = 0
    finished_ns: int = 0
    num_steps: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_prompt_left(self) -> int:
        """Prompt tokens still to be computed; while it waits, those that it expects to be."""
        if self.stage is Stage.WAITING:
            return self.num_queue_tokens - min(self.num_expected_reuse, self.num_queue_tokens)
        return max(0, self.num_prompt_tokens - self.num_cached)

    @property
    def num_queue_tokens(self) -> int:
        """What it counts for in the queue, in tokens: its prompt, unless it expects to share another's."""
        return self.num_prompt_tokens if self.index == 0 else 0

    @property
    def num_tokens(self) -> int:
        """Length of prompt and output together."""
        return self.num_prompt_tokens + self.num_output

    @property
    def expires_at_s(self) -> float:
        """When its deadline or its time limit passes, whichever is first; infinity without either."""
        deadline_s, limit_s = self.request.deadline_s, self.request.time_limit_at_s
        return min(
            math.inf if deadline_s is None else deadline_s,
            math.inf if limit_s is None else limit_s,
        )

    @property
    def has_stopped(self) -> bool:
        """Whether the model ended it; not the request's length, its caller or a deadline."""
        request = self.request
        ends = self.last_token in request.eos_token_ids or self.last_token in request.stop_token_ids
        return self.num_output > 0 and ends

    @property
    def timings(self) -> SequenceTimings:
        """When each phase began."""
        return SequenceTimings(
            self.submitted_ns,
            self.prefill_ns,
            self.first_token_ns,
            self.finished_ns,
            self.num_steps,
            self.num_reused,
        )
