"""The end-to-end demo: synthetic clips, a corpus, a small model, and an HTML report."""
