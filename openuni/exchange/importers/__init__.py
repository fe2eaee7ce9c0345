"""One file per format that `openuni import` reads."""
