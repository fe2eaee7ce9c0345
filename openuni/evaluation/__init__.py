"""`openuni evaluate`: how far maps are from the truth."""
