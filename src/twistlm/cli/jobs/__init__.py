"""What the commands with more than a call to make do."""
