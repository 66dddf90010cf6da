"""Copy conversations from the gateway into a lake of Parquet partitions, each proven complete."""
