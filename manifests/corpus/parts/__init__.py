"""The files of column groups: Parquet parts, their limits and listings, compaction, payloads as open files."""
