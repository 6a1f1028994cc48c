"""Build the two Parquet files of records and rankings from a configuration."""
