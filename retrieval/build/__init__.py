"""From a configuration to the two Parquet files of records and rankings."""
