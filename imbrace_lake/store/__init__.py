"""Where objects lie: a local folder, S3, or any other fsspec file system, behind one contract."""
