"""Object stores of a lake: a local folder, S3 or another fsspec file system, behind one contract."""
