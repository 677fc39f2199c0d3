"""What the loaders of all text models do with a bundle: check its graph, warm it up, read its tokeniser.

Must not know any task.
"""

from __future__ import annotations

from collections.abc import Collection

from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.session import Session

from aimass_encoder.batcher import BatchLimits
from aimass_encoder.config import EncoderConfig
from aimass_encoder.runner import MASK, TOKEN_IDS, TYPE_IDS, EncoderRunner
from aimass_encoder.tokenization import TextTokenizer


def check_graph(session: Session, bundle: str, *, outputs: Collection[str]) -> None:
    """Raise `BadBundle` unless the graph reads tokens and has these outputs."""
    inputs, found = {i.name for i in session.inputs}, {o.name for o in session.outputs}
    if not {TOKEN_IDS, MASK} <= inputs <= {TOKEN_IDS, MASK, TYPE_IDS}:
        raise BadBundle(bundle, detail=f"expected a graph of {TOKEN_IDS} and {MASK}, got {sorted(inputs)}")
    if not set(outputs) <= found:
        expected = " and ".join(outputs)
        raise BadBundle(bundle, detail=f"expected a graph with output {expected}, got {sorted(found)}")


def warm_up(runner: EncoderRunner, config: EncoderConfig, *, max_tokens: int) -> None:
    """Run full batches before traffic."""
    limits = config.batch_limits(
        runner.execution_provider,
        max_tokens=max_tokens,
        output_bytes_per_token=runner.output_bytes_per_token,
    )
    runner.warm_up(warm_up_batches(limits, max_tokens=max_tokens))


def warm_up_batches(limits: BatchLimits, *, max_tokens: int) -> list[list[tuple[int, int]]]:
    """Return the batches to run before traffic, each full, as the `(rows, length)` of its pieces.

    On CUDA every padded length, since kernels are chosen by shape; on the CPU the extremes, which take all
    the memory that will ever be needed.
    """
    longest, multiple = limits.padded(max_tokens), limits.length_multiple
    lengths = range(multiple, longest + 1, multiple) if multiple > 1 else (1, longest)
    return [_full_batch(limits, length) for length in lengths]


def _full_batch(limits: BatchLimits, length: int) -> list[tuple[int, int]]:
    num_rows = min(limits.max_batch_rows, limits.max_batch_tokens // length)
    return [(size, length) for size in limits.cut([length] * num_rows)]


def read_tokenizer(bundle: Bundle, *, max_tokens: int) -> TextTokenizer:
    """Return the tokeniser that the bundle carries. Raises `BadBundle`."""
    file = bundle.file(bundle.manifest.tokenizer.file)
    try:
        return TextTokenizer.from_file(file, max_tokens=max_tokens)
    except Exception as error:  # the library raises bare Exception
        raise BadBundle(bundle.ref, detail=f"{file.name} is not a tokeniser") from error
