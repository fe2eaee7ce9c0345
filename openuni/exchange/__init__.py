"""Exchange with other projects' data sets: importers and exporters."""
