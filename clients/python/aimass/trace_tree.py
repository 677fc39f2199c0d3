"""Finished spans as trees: who called whom, and how long each took. Knows no transport.

A service exports its spans in batches, so those of one trace come in any order and from several processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

MAX_LINE_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """One span as its process reported it. Ids are lower-case hexadecimal; times are `time.time_ns`."""

    trace_id: str
    span_id: str
    parent_span_id: str = ""
    """Empty for the first span of a trace."""
    name: str
    service: str = ""
    """`service.name` of the process."""
    start_ns: int
    end_ns: int
    is_error: bool = False
    error_message: str = ""
    attributes: Mapping[str, object] = field(default_factory=dict)
    linked_span_ids: Sequence[str] = ()

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True, slots=True)
class SpanNode:
    """A span and the spans under it, in the order in which they began."""

    span: FinishedSpan
    children: Sequence[SpanNode]


def span_forest(spans: Iterable[FinishedSpan]) -> Sequence[SpanNode]:
    """Return the trees of the spans. A span whose parent is not among them is the root of one."""
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[FinishedSpan]] = defaultdict(list)
    for span in sorted(by_id.values(), key=lambda s: (s.start_ns, -s.end_ns)):
        children[span.parent_span_id if span.parent_span_id in by_id else ""].append(span)

    def node(span: FinishedSpan) -> SpanNode:
        return SpanNode(span, tuple(node(child) for child in children[span.span_id]))

    return tuple(node(root) for root in children[""])


def rich_tree(root: SpanNode) -> Tree:
    """Return a tree for a terminal: name, milliseconds, begin after the root's in milliseconds, process."""
    tree = Tree(_label(root.span, root.span, parent_service=""), guide_style="dim")
    _add_children(tree, root, root.span)
    return tree


def print_tree(root: SpanNode, *, file: IO[str] | None = None) -> None:
    """Print a tree to `file` or standard output: one line a span, however narrow the terminal is."""
    Console(file=file, width=MAX_LINE_CHARS).print(rich_tree(root))


def trace_object(spans: Sequence[FinishedSpan]) -> dict[str, object]:
    """Return one trace as a JSON-ready object: its id, and its spans in the order in which they began."""
    start_ns = min(span.start_ns for span in spans)
    return {
        "trace_id": spans[0].trace_id,
        "duration_ms": (max(span.end_ns for span in spans) - start_ns) / 1e6,
        "spans": [_span_object(span, start_ns) for span in sorted(spans, key=lambda s: s.start_ns)],
    }


def _add_children(tree: Tree, node: SpanNode, root: FinishedSpan) -> None:
    for child in node.children:
        branch = tree.add(_label(child.span, root, parent_service=node.span.service))
        _add_children(branch, child, root)


def _label(span: FinishedSpan, root: FinishedSpan, *, parent_service: str) -> str:
    parts = [f"[bold]{escape(span.name)}[/]", f"[cyan]{span.duration_ms:.1f} ms[/]"]
    if span is not root:
        parts.append(f"[dim]+{(span.start_ns - root.start_ns) / 1e6:.1f}[/]")
    if span.service and span.service != parent_service:
        parts.append(f"[magenta]{escape(span.service)}[/]")
    if span.is_error:
        parts.append(f"[red]{escape(str(span.attributes.get('error.type', 'error')))}[/]")
    return "  ".join(parts)


def _span_object(span: FinishedSpan, trace_start_ns: int) -> dict[str, object]:
    return {
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "service": span.service,
        "start_ms": (span.start_ns - trace_start_ns) / 1e6,
        "duration_ms": span.duration_ms,
        "is_error": span.is_error,
        "error_message": span.error_message,
        "attributes": dict(span.attributes),
        "linked_span_ids": list(span.linked_span_ids),
    }
