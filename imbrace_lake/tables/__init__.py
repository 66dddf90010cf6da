"""Tables: the messages and ledgers of a lake in a few large files, which every engine reads (Delta)."""
