"""The command line and the flows: order, schedules, retries, approval. No pixel is touched here."""
