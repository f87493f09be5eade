"""What strangers' names become as text in a picture."""

from xcite.control_characters import visible


def plain(name: str) -> str:
    """A name that matplotlib draws as it is: nothing acts, nothing is taken for a formula."""
    return visible(name).replace("$", r"\$")
