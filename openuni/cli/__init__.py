"""The commands of `openuni`, grouped by subject. Importing a module adds its commands to the app."""
