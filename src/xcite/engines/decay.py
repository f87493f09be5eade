"""Which parameters AdamW decays: a pure function, because the public XCiT codes disagree."""

from xcite.errors import XciteError

RULES = ("brief", "official", "passl")


def decays(name: str, dimensions: int, rule: str) -> bool:
    """Whether weight decay acts on the parameter.

    - "brief", our default: matrices and kernels only, neither `cls_token` nor `temperature`.
    - "official": facebookresearch/xcit with timm 0.4.9's `add_weight_decay`. It decays
      `temperature` too: `XCA.no_weight_decay` is never asked.
    - "passl": PASSL v1.1 goes by parts of the name, so biases, norms and LayerScale decay, and
      nothing of `pos_embeder`.

    Args:
        name: canonical name.
        dimensions: how many axes the parameter has.

    Raises:
        XciteError: unknown rule.
    """
    leaf = name.rsplit(".", 1)[-1]
    if rule == "brief":
        return dimensions >= 2 and leaf not in ("bias", "cls_token", "temperature")
    if rule == "official":
        return dimensions != 1 and leaf != "bias" and name != "cls_token"
    if rule == "passl":
        spared = ("temperature", "pos_embed", "cls_token", "dist_token")
        return not any(part in name for part in spared)
    raise XciteError(f"unknown decay rule {rule!r}; choose {', '.join(RULES)}")
