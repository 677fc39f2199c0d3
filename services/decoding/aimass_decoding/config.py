"""What an operator may choose about the decoding engine. Reads no environment by itself."""

from __future__ import annotations

from dataclasses import dataclass

from aimass_serving.errors import BadConfig

from aimass_decoding.runner import DecoderGeometry

DEFAULT_MAX_LEN = 2048


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits and scheduling rules of one engine. Every field is a number, so that it maps to a variable."""

    max_slots: int = 16
    """Most sequences that advance together; fewer when `kv_budget_bytes` holds fewer."""
    max_len: int = 0
    """Longest sequence in tokens, prompt and text together. 0 takes the model's positions, at most 2048."""
    kv_budget_bytes: int = 2 * 1024**3
    """Most memory of the key-value cache. The system commits it only as slots fill up."""
    max_beams: int = 16
    """Most beams of all searches together; fewer when `beam_budget_bytes` holds fewer."""
    beam_budget_bytes: int = 1024**3
    """Most memory of the beams' key-value cache, beside the other. Taken at the first search."""
    max_prefill_tokens_per_step: int = 128
    """Most prompt tokens computed between two decode steps. Also the length of a prompt's chunks."""
    max_decode_slowdown: float = 1.5
    """Others' prompts may stretch the mean time between a running stream's tokens by this factor. Above 1."""
    max_prefill_wait_s: float = 2.0
    """A prompt that made no progress for this long is computed although it slows running streams down."""
    max_queue_tokens: int = 32_768
    """Most prompt tokens that wait for a slot. A request above it is refused, unless nothing waits."""
    max_kept_prefixes: int = 8
    """Prompts of ended sequences that stay in free slots, so that a later one that starts alike, by whole
    chunks, need not compute its start again. 0 turns it off. Needs a device that can copy slots: the CPU."""
    max_draft_tokens: int = 8
    """Most tokens that are guessed, from a text itself or by the draft graph of a bundle that has one, and
    confirmed by one run, while it runs alone. 0 turns it off; so does a graph whose numbers differ by the
    length of a run, as those of integer graphs do on the runtime's own kernels (031, 033)."""
    num_mask_threads: int = 2
    """Threads that compute which tokens guided sequences may take, while the graph runs."""
    max_mask_wait_s: float = 2.0
    """A sequence whose mask takes longer than this after its step fails."""
    assumed_deadline_s: float = 60.0
    """A request without a deadline, or with a later one, is sorted as if it had this one. So it is passed by
    later arrivals for no longer than this."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in (
            "max_slots",
            "max_prefill_tokens_per_step",
            "max_queue_tokens",
            "kv_budget_bytes",
            "max_beams",
            "num_mask_threads",
        ):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.beam_budget_bytes >= 0, "beam_budget_bytes", "at least 0", self.beam_budget_bytes)
        _require(self.max_kept_prefixes >= 0, "max_kept_prefixes", "at least 0", self.max_kept_prefixes)
        _require(self.max_draft_tokens >= 0, "max_draft_tokens", "at least 0", self.max_draft_tokens)
        _require(self.max_len == 0 or self.max_len >= 2, "max_len", "0, or at least 2", self.max_len)
        _require(self.max_decode_slowdown > 1, "max_decode_slowdown", "above 1", self.max_decode_slowdown)
        _require(self.max_prefill_wait_s > 0, "max_prefill_wait_s", "above 0", self.max_prefill_wait_s)
        _require(self.max_mask_wait_s > 0, "max_mask_wait_s", "above 0", self.max_mask_wait_s)
        _require(self.assumed_deadline_s > 0, "assumed_deadline_s", "above 0", self.assumed_deadline_s)

    def max_len_of(self, geometry: DecoderGeometry) -> int:
        """Return the longest sequence, in tokens, that a slot holds for this model."""
        wanted = self.max_len or DEFAULT_MAX_LEN
        return min(wanted, geometry.max_positions)

    def num_slots_of(self, geometry: DecoderGeometry) -> int:
        """Return how many slots the budget holds for this model. Raises `BadConfig` when not even one."""
        slot_bytes = self._slot_bytes(geometry)
        num_slots = min(self.max_slots, self.kv_budget_bytes // slot_bytes)
        _require(
            num_slots >= 1,
            "kv_budget_bytes",
            f"at least {slot_bytes} bytes, one slot of {self.max_len_of(geometry)} tokens",
            self.kv_budget_bytes,
        )
        return num_slots

    def num_beams_of(self, geometry: DecoderGeometry) -> int:
        """Return how many beams the beams' budget holds for this model; it may be none."""
        return min(self.max_beams, self.beam_budget_bytes // self._slot_bytes(geometry))

    def _slot_bytes(self, geometry: DecoderGeometry) -> int:
        slot_bytes = geometry.kv_bytes_per_token * self.max_len_of(geometry)
        return slot_bytes + (geometry.cross.bytes_per_slot if geometry.cross else 0)


def _require(condition: bool, field_name: str, expected: str, got: object) -> None:
    if not condition:
        raise BadConfig(field_name, expected=expected, got=got)
