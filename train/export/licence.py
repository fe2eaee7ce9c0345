"""Licence of exported weights: as given, else that of the base model's own card; never assumed."""

import re

from openuni.manifests.contracts.checkpoint import hub_or_path
from openuni.manifests.errors import OpenUniError

LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def licence_of_base(ref: str) -> str:
    """Licence that the card (README.md) of a local base model states; empty if it states none."""
    from huggingface_hub.repocard import metadata_load

    root = hub_or_path(ref).find() if ref else None
    if root is None:
        return ""
    for card in (root / "README.md", root.parent / "README.md"):
        if not card.is_file():
            continue
        try:
            facts = metadata_load(card)
        except Exception:  # noqa: BLE001  # an untrusted card: any error means that it states nothing
            return ""
        found = facts.get("license") if isinstance(facts, dict) else None
        usable = isinstance(found, str) and LICENCE.fullmatch(found) and found not in ("other", "unknown")
        return str(found) if usable else ""
    return ""


def chosen_licence(given: str, base: str) -> str:
    """The licence of the exported weights. `base`: reference of the base model. Raises `OpenUniError` if unknown."""
    if given:
        if not LICENCE.fullmatch(given):
            raise OpenUniError(f'--licence "{given}": must be a licence name of the Hub, such as apache-2.0 or other')
        return given
    if found := licence_of_base(base):
        return found
    why = f"the card of {base} is not available locally, or states none" if base else "the run has no base model"
    raise OpenUniError(
        f"the licence of the exported weights is unknown: {why}. State it, such as: --licence apache-2.0 (weights "
        "derived from a base model are subject to its licence)"
    )
