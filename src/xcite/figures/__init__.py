"""Pictures: curves, confusion, attention."""
