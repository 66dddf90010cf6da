"""What is wrong with a lake: objects that are not as they were written, counts that are not the gateway's."""
