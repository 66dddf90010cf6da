"""The vendor's API: one client, what it answers, its budget, and the walk of a list that moves."""
