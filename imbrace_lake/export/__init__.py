"""One run: from phone numbers to published conversations."""
