"""onnxscript's rewriting rules, each asked only about nodes of the operation that it begins with."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def look_first() -> None:
    """Let every rule of the exporter look at a node's operation before anything else; once in a process.

    As they come, all rules try to match at every node, and the one of two outputs looks through the whole graph each
    time: a quarter of the export of a Swin-T. What is found is the same. The rules are private to onnxscript: where
    they are not as in 0.7, everything stays as it is.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, _basics

        found = [
            (rule._matcher, rule._target_pattern.output_nodes[0].op_identifier()) for rule in _DEFAULT_REWRITE_RULES
        ]
        for matcher, operation in found:
            if operation is not None:
                matcher.match = _looking_first(matcher.match, operation, _basics.MatchResult)


def _looking_first(match: Callable[..., Any], operation: Any, result: Callable[[], Any]) -> Callable[..., Any]:
    def looks_first(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if node.op_identifier() != operation:
            return result().fail(f"not {operation}")
        return match(model, graph, node, **options)

    return looks_first
