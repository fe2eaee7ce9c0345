"""The pipeline: ingest, filter, annotate and encode, in this process or on Ray."""
