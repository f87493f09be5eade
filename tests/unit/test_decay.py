"""Which parameters decay, counted as the three public codes do."""

import pytest

from xcite import canonical, variants
from xcite.engines.decay import RULES, decays
from xcite.errors import XciteError


# Counts of decayed and spared parameters from running the real codes.
@pytest.mark.parametrize(
    ("architecture", "rule", "decayed", "spared"),
    [
        ("xcit_nano_12_p8", "brief", 85, 247),
        ("xcit_nano_12_p8", "official", 97, 235),
        ("xcit_nano_12_p8", "passl", 317, 15),
        ("xcit_tiny_12_p16", "brief", 86, 249),
        ("xcit_tiny_12_p16", "official", 98, 237),
        ("xcit_tiny_12_p16", "passl", 320, 15),
    ],
)
def test_counts(architecture, rule, decayed, spared):
    named = canonical.shapes(variants.find(architecture))
    answers = [decays(n, len(s), rule) for n, s in named.items() if canonical.is_parameter(n)]
    assert (answers.count(True), answers.count(False)) == (decayed, spared)


def test_where_the_rules_differ():
    def rules(name, *shape):
        return [decays(name, len(shape), rule) for rule in RULES]

    assert rules("blocks.0.attn.temperature", 4, 1, 1) == [False, True, False]
    assert rules("cls_token", 1, 1, 32) == [False, False, False]
    assert rules("norm.bias", 32) == [False, False, True]
    assert rules("blocks.0.gamma1", 32) == [False, False, True]
    assert rules("pos_embeder.token_projection.weight", 32, 64, 1, 1) == [True, True, False]


def test_unknown_rule():
    with pytest.raises(XciteError, match="brief"):
        decays("norm.bias", 1, "none")
