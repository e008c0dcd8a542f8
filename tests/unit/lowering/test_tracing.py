"""What tracing relies on in the exporter, and what it leaves as it was."""

from __future__ import annotations

from onnxscript import rewriter

from odm_deploy.lowering import tracing
from odm_deploy.lowering.lower import lower
from tests.factories import tiny_model


def test_the_quadratic_rule_exists_and_is_only_taken_out_while_exporting():
    rules = rewriter._DEFAULT_REWRITE_RULES
    # A newer onnxscript that renames it would export large networks slowly again, and say nothing.
    assert [rule.name for rule in rules].count(tracing._QUADRATIC_RULE) == 1
    with tracing._without_quadratic_rewriting():
        assert tracing._QUADRATIC_RULE not in [rule.name for rule in rewriter._DEFAULT_REWRITE_RULES]
        assert len(rewriter._DEFAULT_REWRITE_RULES) == len(rules) - 1
    assert rewriter._DEFAULT_REWRITE_RULES is rules
    lower(tiny_model())
    assert rewriter._DEFAULT_REWRITE_RULES is rules
