"""Pictures: where they come from, how they are changed, how they become batches."""
