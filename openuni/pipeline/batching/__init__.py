"""Several inputs in one call of a network: batches, and what happens when one fails."""
