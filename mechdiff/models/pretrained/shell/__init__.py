"""Command lines pasted as text, read as a shell would."""
