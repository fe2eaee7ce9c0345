"""The demo: home-made clips, a corpus, a small model, and one page that shows them."""
