"""What lies in the lake: rows, parts, ledgers, and how both are brought up to date."""
