"""The commands of `openuni`, by what they are about. Each module adds its own to the app when imported."""
